"""Finds values without quotation marks behind telling names, in configuration, comments, strings and commands."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterator

from engine.data.secret_rules.literals import in_string, literal
from engine.data.secret_rules.names import TAIL, Stem, evidence_of, name_places, stems
from engine.data.secret_rules.searched_text import SearchedText, line_start
from engine.data.secret_rules.values import Evidence, is_secretive

Span = tuple[int, int]
LANGUAGES = frozenset(
    {"YAML", "INI", "TOML", "Shell", "Dockerfile", "Text", "Makefile", "Terraform", "Markdown", "reStructuredText"}
    | {"Properties", "PowerShell", "Batch", "Fish", "Diff", "HTTP", "Nginx", "Just", "CMake", "AsciiDoc", "Org"}
)
"Where a value may stand without quotation marks."
_PIPES = frozenset({"Shell", "Dockerfile", "Makefile", "Fish", "PowerShell", "Batch", "YAML"})
_BARE = (
    TAIL + r"(?P<close>\\{0,8}[\"'`](?![\w@])|\*\*|\])?[ \t]{0,20}"
    r"(?:[\w:.-]{1,20}=[\"'][^\"'\n]{0,80}[\"'][ \t]{0,4}){0,3}"
    r"(?:#?\d{1,2}[ \t]{0,4}(?=:)"
    r"|(?:for|of)[ \t](?:the[ \t])?[\w.@-]{1,40}[ \t]{0,4}(?=[:=]|is\b)|\([^()\n]{1,30}\)[ \t]{0,4}(?=[:=]))?"
    r"(?::(?=:[ \t]))?(?P<op>:[=-]|\?=|=>|={1,3}|:|：|＝|<-|\bis\b|\bwas\b|\blautet\b|\best\b|\||>)?"
    r"(?P<deep>[ \t]{0,40}(?:[>|][+-]?[ \t]*)?\n(?=[ \t]+\S))?[ \t]{0,60}(?:-[ \t]{1,4})?"
    r"(?:!{1,2}[\w-]{1,20}[ \t]{1,4}|&\w{1,40}[ \t]{1,4}|\*\*[ \t]{0,4}|&quot;|&#3[49];|\$\{\w{0,40}:[-=])?"
    r"(?P<open>\[\[|<!\[cdata\[|%[qwi]?[({\[|]|q{1,2}[({\[]|<<<[ \t]*\w+\n|\((?=[^()\s]{5,60}\)))?"
)
_LONGEST = 300
"Characters of a value that are looked at; what goes on behind them belongs to it."
_VALUE = rf"(?P<value>[^\s\"'`<>]{{5,{_LONGEST}}})"
_WITH_DIGIT = r"(?=[^\s\"'`<>]{0,60}\d)"
"In code what is not quoted is mostly an expression; without a digit it is passed over."
_MORE = (
    r"type|description|sensitive|nullable|noecho|secret|required|prompt|label|export|ephemeral|constraintdescription"
)
_VALUE_KEYS = r"value|default|content|val|parametervalue|defaultvalue|string|initialvalue"
_IN_VALUE = (
    TAIL + r"(?:\\{0,8}[\"'`])?(?:</(?:name|key)>|/?>)?[\s,{(:]{0,60}"
    rf"(?:(?:{_MORE})\b[^\n]{{0,160}}\n[ \t]{{0,40}}){{0,4}}"
    rf"(?P<key>\\{{0,8}}[\"'<]?(?:{_VALUE_KEYS})\b\\{{0,8}}[\"'`]?[ \t]{{0,20}}[:=>][ \t]{{0,4}})"
    r"(?:@?(?P<esc>\\{0,8})(?P<q>[\"'`])|(?P<bare>[^\s\"'`<>,]{5,300}))"
)
"A name, and the value under a key beside it: Kubernetes, Terraform, XML."
_FLAG = re.compile(r"(?<![\w-])--?[a-z0-9.-]{0,30}$")
_COMMENT = re.compile(r"(?:^|\s)(?:#|//|/?\*|--|<!--|;|rem\b|%)")
_SETS = re.compile(
    r"(?:^|[\s;&|])(?:env|arg|setx?|set -\w+|export|machine\s.*|login\s.*|default\s.*|configure set|config set.*"
    r"|secrets? set|config:set|user\s.*|\.)\s+[\w./:-]*$"
)
"What a line begins with that sets a variable without an operator."
_ALONE = re.compile(r"[ \t+.\w\"'-]*$")
_QUERY = re.compile(r"[?&#;][\w.-]*$")
_UNTIL = re.compile(r"[^\s\"'`<>&;,\\(){}\[\]|]+")
_REST = re.compile(r"[^\s\"'`<>&;,\\(){}\[\]|]+")
_SCHEME_BEFORE = re.compile(r"\{[\w@.-]{2,28}\}$|encrypted:$")
_LINK = re.compile(r"[ \t]{0,8}\[[^\]\n]*$")
"The start of a link's definition in Markdown."
_IN_NAMESPACE = re.compile(r":[A-Za-z_]{2}\w{0,60}(?:[(;,{)<\s]|::|$)")
"The rest of a name in Rust, C++ and Ruby."
_SIGNED = re.compile(r"sharedkey(?:lite)?[ \t]{1,4}$")
"The scheme of a request that is signed: what stands behind it is an account and a signature."
_BROKEN = re.compile(r"\\{1,8}[nrt](?!\w)|\\{1,8}n\\")
"Where a line ends in a text that stands in a string."
_PARAMETER = re.compile(r"&[a-z_]{2,30}=")
"The next one of a form or a query."
_CLOSING = {"[": "]", "(": ")", "{": "}", "|": "|"}


@functools.cache
def _patterns(rest: str) -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    return tuple(re.compile(rest + more) for more in (_BARE + _VALUE, _BARE + _WITH_DIGIT + _VALUE, _IN_VALUE))  # type: ignore[return-value]


def bare_values(source: SearchedText, found: Collection[str]) -> Iterator[tuple[str, int, int]]:
    """Yields kind and place of each unquoted value that a telling name is given, or of one beside its name.

    Args:
        source: What is searched.
        found: Stems that occur in it (engine.data.secret_rules.names.present).
    """
    text, lower, configures = source.text, source.lower, source.language in LANGUAGES
    for stem in stems():
        if stem.text not in found:
            continue
        everywhere, with_digit, in_value = _patterns(stem.rest)
        pattern = everywhere if configures else with_digit
        taken = beside = 0
        for place in name_places(source, stem):
            # What was taken for a value may itself be the name of the next one.
            match = pattern.match(lower, place + len(stem.text)) if place >= taken else None
            if match is not None and match["op"] == "|" and source.language in _PIPES:
                match = None  # a command follows
            span = None if match is None else _value(text, lower, match, place, stem, configures=configures)
            if match is not None and span is not None:
                taken = _end_of_whole(text, *span)
                yield stem.kind, span[0], taken
            match = in_value.match(lower, place + len(stem.text)) if place >= beside else None
            evidence = None if match is None else evidence_of(text, match, stem)
            if match is not None and evidence is not None:
                span = _beside(text, match)
                if span is not None and is_secretive(text[slice(*span)], evidence):
                    end = span[1] if match["bare"] is None else _end_of_whole(text, *span)
                    beside = end if end > span[1] else beside  # each long value is looked at once
                    yield stem.kind, span[0], end


def _value(text: str, lower: str, match: re.Match[str], place: int, stem: Stem, *, configures: bool) -> Span | None:
    """Returns the value, if one may stand there and it looks like a secret."""
    start, end = match.span("value")
    until = _until(text, start, end)
    if text[start] == "?" and text[start - 1] == ":":
        return None  # what a shell says where a variable is not set
    if match["deep"] is not None and text[end - 1] == ":" and _ends_line(text, end):
        return None  # the next key
    if _in_namespace(text, start, place, configures=configures):
        return None
    if text[start] == "&" or _SCHEME_BEFORE.search(text, max(0, start - 30), start):
        return None  # the next parameter of a query; a hash behind its method
    if not (is_secretive(text[start:end], stem.evidence) or is_secretive(text[start:until], stem.evidence)):
        return None
    evidence = evidence_of(text, match, stem)
    if evidence is None or (match["deep"] is not None and not (configures and match["op"] == ":")):
        return None
    if match["open"]:
        cut = text.find(_CLOSING.get(match["open"][-1], "\n"), start, end)
        end = cut if cut > start else end
        if match["open"] == "(" and (match["close"] or not (configures and _stands_out(text[start:end]))):
            return None
        return (start, end) if is_secretive(text[start:end], evidence) else None
    if match["op"] == ">":
        closed = text.startswith(("</", "]]>"), _end_of_whole(text, start, end))
        return (start, end) if closed and is_secretive(text[start:end], evidence) else None
    line = lower[line_start(text, place, 300) : place]
    if match["close"] == "]" and match["op"] == ":" and _LINK.match(line):
        return None
    if (broken := _BROKEN.search(text, start, end) or _PARAMETER.search(text, start, end)) is not None:
        end = broken.start()
    quoted = any(in_string(text, place, quote) for quote in "\"'`")
    within = quoted or _COMMENT.search(line) is not None
    if not match["op"]:
        return _without_operator(text, match, line, evidence, within=within, configures=configures)
    query = match["op"] == "=" and _QUERY.search(line) is not None
    if match["close"] and not configures and not within:
        return None
    if not (configures or within or query):
        # A line of a string of several lines looks like code; so does a name with its type.
        alone = match["op"] == "=" and not line.strip() and text[start - 1] == "=" and _ends_line(text, until)
        plain = (alone or (match["op"] == ":" and _ends_entry(text, until))) and _stands_out(text[start:until])
        return (start, until) if plain and is_secretive(text[start:until], Evidence.NEAR) else None
    if match["op"] in ("is", "was", "lautet", "est"):
        evidence = max(evidence, Evidence.NEAR)
    if quoted or query or not configures:
        end = until
        if match["op"] == ":" and not configures and not quoted and not _stands_out(text[start:end]):
            evidence = max(evidence, Evidence.NEAR)
    else:
        end = _trimmed(text, start, end)
    return (start, end) if is_secretive(text[start:end], evidence) else None


def _in_namespace(text: str, start: int, place: int, *, configures: bool) -> bool:
    """Tells whether a name in code goes on behind two colons; elsewhere, a value with digits stands there, too."""
    if text[start] != ":" or text[start - 1] != ":" or not (name := _IN_NAMESPACE.match(text, start)):
        return False
    if not any(map(str.isdigit, name[0])) or name[0].endswith(("(", "::")):
        return True
    line = text[line_start(text, place, 300) : place].lower()
    return not (configures or _COMMENT.search(line) or any(in_string(text, place, quote) for quote in "\"'`"))


def _without_operator(
    text: str, match: re.Match[str], line: str, evidence: Evidence, *, within: bool, configures: bool
) -> Span | None:
    """Returns a value behind nothing but space: an option's, a command's variable's, a setting's alone on its line."""
    start, end = match.span("value")
    if _SIGNED.search(text[max(0, start - 20) : start].lower()):
        return None
    if (match["close"] and not configures) or text[start - 1] not in " \t\n*" or not (configures or within):
        return None
    alone = configures and _ALONE.match(line) is not None and _ends_line(text, end) and text[start] != "("
    if _FLAG.search(line) or _SETS.search(line) or alone:
        end = _trimmed(text, start, end) if configures else _until(text, start, end)
        return (start, end) if is_secretive(text[start:end], evidence) else None
    end = _trimmed(text, start, end)
    value = text[start:end]
    return (start, end) if _stands_out(value) and is_secretive(value, max(evidence, Evidence.NEAR)) else None


def _end_of_whole(text: str, start: int, end: int) -> int:
    """Returns where a value ends of which only the first characters were looked at."""
    rest = _REST.match(text, end) if end - start >= _LONGEST else None
    return end if rest is None else rest.end()


def _stands_out(value: str) -> bool:
    """Tells whether a value differs from prose: digits and letters together, and a mark or both cases."""
    letters = [c for c in value if c.isascii() and c.isalpha()]
    mixed = any(c.islower() for c in letters) and any(c.isupper() for c in letters)
    marked = mixed or len(value) >= 16 or any(c in "!@#$%^&*+=~" for c in value)
    return marked and len(letters) > 1 and any(c.isdigit() for c in value)


def _until(text: str, start: int, end: int) -> int:
    """Returns the end of a value that stands in a string, a comment or a command."""
    match = _UNTIL.match(text, start, end)
    return match.end() if match else start


def _ends_line(text: str, end: int) -> bool:
    stop = text.find("\n", end, end + 40)
    return not text[end : stop if stop >= 0 else end + 40].strip(" \t\r;")


def _ends_entry(text: str, end: int) -> bool:
    """Tells whether what stands behind a value ends its entry, and its braces where its line opens them."""
    stop = text.find("\n", end, end + 40)
    rest = text[end : stop if stop >= 0 else end + 40].strip(" \t\r;")
    return not rest or ("{" in text[line_start(text, end, 200) : end] and re.match(r"[,}\]]", rest) is not None)


def _trimmed(text: str, start: int, end: int) -> int:
    """Returns the end of a value without what closes the sentence or bracket around it."""
    while end > start and text[end - 1] in ",;)]}|.:*\\":
        opening = {")": "(", "]": "[", "}": "{"}.get(text[end - 1])
        if opening is not None and opening in text[start:end]:
            break
        end -= 1
    return end


def _beside(text: str, match: re.Match[str]) -> Span | None:
    if match["bare"] is None:
        return literal(text, match.start("esc"))
    start, end = match.span("bare")
    if _in_namespace(text, start, start, configures=False):
        return None
    return start, _trimmed(text, start, end)
