"""Turns gitleaks' rules into assets/gitleaks_rules.toml, as patterns of Python's re that match one word.

    python scripts/import_gitleaks.py gitleaks.toml > assets/gitleaks_rules.toml

Take config/gitleaks.toml of a release of https://github.com/gitleaks/gitleaks. Kept are rules for tokens that announce
themselves, and for values beside their provider's name. Left out are those that engine.data.secret_rules finds by other
means (headers, key blocks, Kubernetes, generic names), identifiers that are no secrets, and rules whose pattern is no
bounded expression in one word: their time is not linear.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BESIDE = re.compile(
    r"^(?:\(\?i\))?\[\\w\.-\]\{0,50\}\?(?:\(\?i:\[\\w\.-\]\{0,50\}\?)?"
    r"\(\?:(?P<names>.*?)\)\(\?:\[ \\t\\w\.-\]\{0,20\}\)\[\\s'\"\]\{0,3\}\)?"
    r"\(\?:=\|>\|:\{1,3\}=\|\\\|\\\|\|:\|=>\|\\\?=\|,\)\[\\x60'\"\\s=\]\{0,5\}\((?P<value>.*?)\)\(\?:\[\\x60'\"\\s;\]\|\\\\\[nr\]\|\$\)"
)
END = r"""(?:[\x60'"\s;]|\\[nr]|$)"""
LEFT_OUT = re.compile(
    r"generic|client-id|public|-pub-|access-id|api-id|curl|kubernetes|private-key|jwt|pkcs|nuget-config|freemius|sidekiq|twilio-api-key"
    r"|tf-password|linear-client|lob-|user-api-id|facebook-access"
)
HEADER = """\
# Forms of keys and tokens, from gitleaks ({version} of config/gitleaks.toml), made by scripts/import_gitleaks.py.
#
# {licence}
"""


def main() -> None:
    """Prints the rules."""
    given = Path(sys.argv[1])
    rules = tomllib.loads(given.read_text(encoding="utf-8"))["rules"]
    licence = (
        (given.parent.parent / "LICENSE")
        .read_text(encoding="utf-8")
        .strip()
        .replace("\n", "\n# ")
        .replace("# \n", "#\n")
    )
    print(HEADER.format(version="the rules", licence=licence))
    announced, beside = [], []
    for rule in rules:
        pattern = rule.get("regex", "")
        if LEFT_OUT.search(rule["id"]) or not pattern:
            continue
        match = BESIDE.match(pattern)
        entropy = float(rule.get("entropy", 0))
        if match:
            names = sorted(set(_names(match["names"])))
            value = _python(match["value"], everywhere=pattern.startswith("(?i)"))
            beside.append((rule["id"], names, value, entropy))
        elif (value := _announced(pattern)) is not None:
            announced.append((rule["id"], _starts(rule["keywords"], value), value, entropy))
    for table, rows in (("announced", announced), ("beside", beside)):
        print(f"\n[{table}]")
        for kind, words, value, entropy in rows:
            re.compile(value)
            word = "start" if table == "announced" else "names"
            shown = ", ".join(f'"{w}"' for w in words)
            print(f"\"{kind}\" = {{ {word} = [{shown}], value = '{value}', entropy = {entropy} }}")


def _names(pattern: str) -> list[str]:
    flat = re.sub(r"\(\?-i:([^()]*)\)", r"\1", pattern)
    found = []
    for name in flat.split("|"):
        plain = re.sub(r"\[([A-Za-z])[a-z]\]", r"\1", name)
        if re.fullmatch(r"[\w-]+", plain):
            found.append(plain.lower())
        elif "[_-]?" in plain and re.fullmatch(r"[\w\[\]?-]+", plain):
            found += [plain.replace("[_-]?", mark).lower() for mark in ("", "_", "-")]
        elif plain.startswith(("snyk", "sonar")):
            found.append(plain[:5].rstrip("[").lower())
    return [name for name in found if len(name) > 2]


def _python(value: str, *, everywhere: bool) -> str:
    """Flags of parts as Python writes them."""
    value = value.replace("(?-i:A)", "A")
    if "(?i)" in value:
        before, after = value.split("(?i)", 1)
        value = f"{before}(?i:{after})"
    elif everywhere:
        value = f"(?i:{value})"
    return value.replace(r"\/", "/").replace("[[:alnum:]]", "[A-Za-z0-9]").replace("(AAAAAAAAAA)", "AAAAAAAAAA")


def _announced(pattern: str) -> str | None:
    everywhere = pattern.startswith("(?i)")
    value = pattern.removeprefix("(?i)")
    for end in (END, r"""(?:[\x60'"\s;]|\\[nr]|$|\b)""", r"(?:[^\w-]|\z)", r"(?:[^a-zA-Z0-9+/]|\z)"):
        value = value.removesuffix(end)
    value = value.removeprefix(r"\b").removesuffix(r"\b")
    if re.search(r"\.\*|\\s\S*\{0|\[\\s|\(\?:\^", value):
        return None
    if re.search(r"\([^?)]*\(\?i\)|\(\?i\)", value):
        count = value.count("(?i)")
        inner = (
            value.strip("()")
            if value.startswith("(") and value.endswith(")") and value.count("(") == 1 + count
            else value
        )
        if count != 1 or inner.count("(") != count:
            return None
        value = inner
    value = _python(value, everywhere=everywhere)
    value = re.sub(r"\((?!\?)", "(?:", value)
    value = re.sub(r"(\{\d+),\}", r"\1,2000}", value)
    value = value.replace("]+", "]{1,400}").replace("\\d+", "\\d{1,20}").replace("]*", "]{0,400}").replace("'", "\\x27")
    try:
        re.compile(value)
    except re.error:
        return None
    return value


def _starts(keywords: list[str], value: str) -> list[str]:
    """The keywords as the value spells them; the rule applies without one where letters of both sizes may stand."""
    found = []
    for word in keywords:
        if len(word) < 3:
            continue  # every long word holds it
        at = re.sub(r"\\(?=[.~-])", "", value).lower().find(word)
        plain = re.sub(r"\\(?=[.~-])", "", value)
        found.append(plain[at : at + len(word)] if at >= 0 else word)
    return found


if __name__ == "__main__":
    main()
