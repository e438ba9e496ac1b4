"""Resolves uses in languages whose files name definitions, not paths, for benchmarks/import_order.py."""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Iterable

Pair = tuple[str, str]
Texts = dict[str, str]


def without_comments(text: str, line: tuple[str, ...], block: tuple[str, str] | None, quotes: str) -> str:
    """The text with comments and strings blanked, read letter by letter."""
    out: list[str] = []
    place = 0
    while place < len(text):
        if any(text.startswith(sign, place) for sign in line):
            end = text.find("\n", place)
            place = len(text) if end < 0 else end
        elif block and text.startswith(block[0], place):
            end = text.find(block[1], place + len(block[0]))
            out.append(" ")
            place = len(text) if end < 0 else end + len(block[1])
        elif text[place] in quotes:
            sign = text[place]
            triple = text[place : place + 3] == sign * 3
            close = sign * 3 if triple else sign
            place += len(close)
            while place < len(text) and not text.startswith(close, place):
                if text[place] == "\\" and not triple:
                    place += 1
                elif text[place] == "\n" and not triple and sign != "`":
                    break
                place += 1
            place += len(close)
            out.append('""')
        else:
            out.append(text[place])
            place += 1
    return "".join(out)


def c_like(text: str) -> str:
    return without_comments(text, ("//",), ("/*", "*/"), '"')


def words(code: str) -> set[str]:
    return set(re.split(r"\W+", code))


def by_name(texts: Texts, defines: Callable[[str], Iterable[str]], scope: Callable[[str], set[str]]) -> set[Pair]:
    """Pairs by names that one file alone defines; `scope` gives the namespaces that a file sees ("*": all)."""
    codes = {name: c_like(text) for name, text in texts.items()}
    definers: dict[str, set[str]] = defaultdict(set)
    for name, code in codes.items():
        for defined in defines(code):
            definers[defined].add(name)
    spaces = {name: own_space(code) for name, code in codes.items()}
    pairs = set()
    for name, code in codes.items():
        seen = scope(code)
        for word in words(code):
            found = definers.get(word, set())
            if len(found) == 1 and len(word) > 1:
                [definer] = found
                if definer != name and ("*" in seen or spaces[definer] in seen):
                    pairs.add((name, definer))
    return pairs


def own_space(code: str) -> str:
    found = re.search(r"(?m)^\s*(?:namespace|package)\s+(?!object)([\w.]+)", code)
    return found[1] if found else ""


def csharp(texts: Texts) -> set[Pair]:
    everywhere = {m for text in texts.values() for m in re.findall(r"(?m)^\s*global using ([\w.]+);", text)}

    def sees(code: str) -> set[str]:
        own = own_space(code)
        parts = own.split(".")
        around = {".".join(parts[:count]) for count in range(len(parts) + 1)}
        return around | everywhere | set(re.findall(r"(?m)^\s*(?:global )?using (?:static )?([\w.]+);", code))

    return by_name(
        texts,
        lambda code: re.findall(r"\b(?:class|struct|interface|enum|record)\s+([A-Z]\w*)", code),
        sees,
    )


def swift(texts: Texts) -> set[Pair]:
    return by_name(
        texts,
        lambda code: re.findall(r"\b(?:class|struct|enum|protocol|actor|typealias)\s+([A-Z]\w*)", code),
        lambda _: {"*"},
    )


def jvm(texts: Texts) -> set[Pair]:
    """A full name that is imported, or a name of the same package."""
    types = r"\b(?:class|interface|object|trait|enum|record|typealias|@interface)\s+([A-Za-z]\w*)"
    top = r"(?m)^(?:[a-z]+ )*(?:fun|val|var|def)\s+(?:<[^>\n]*>\s*)?(?:[\w<>?, *]+\.)?(\w+)"
    full: dict[str, set[str]] = defaultdict(set)
    codes = {name: c_like(text) for name, text in texts.items()}
    for name, code in codes.items():
        defined = set(re.findall(types, code))
        if not name.endswith(".java"):
            defined |= set(re.findall(top, code))
        for each in defined:
            full[f"{own_space(code)}.{each}"].add(name)
    pairs = set()
    for name, code in codes.items():
        # A small word is a function's name where it is called, and a variable's elsewhere.
        used = {word for word in words(code) if word[:1].isupper()} | set(re.findall(r"(?<![.\w])[a-z]\w*(?=\()", code))
        wanted = {f"{own_space(code)}.{word}" for word in used}
        for line in re.findall(r"(?m)^\s*import\s+(?:static\s+)?(.+)$", code):
            head, brace, rest = line.strip().rstrip(";").partition("{")
            for item in rest.rstrip("}").split(",") if brace else [""]:
                path = (head + re.split(r"=>| as ", item)[0]).replace("`", "").strip().split(" as ")[0]
                parts = path.split(".")
                if parts[-1] in ("*", "_"):
                    space = ".".join(parts[:-1])
                    wanted |= {f"{space}.{word}" for word in words(code)}
                    parts = parts[:-1]
                wanted |= {".".join(parts[:count]) for count in range(2, len(parts) + 1)}
        for each in wanted:
            found = full.get(each, set())
            if len(found) == 1 and found != {name}:
                pairs.add((name, *found))
    return pairs


def php(texts: Texts) -> set[Pair]:
    full: dict[str, set[str]] = defaultdict(set)
    codes = {name: without_comments(text, ("//", "# "), ("/*", "*/"), "'\"") for name, text in texts.items()}
    spaces = {}
    for name, code in codes.items():
        found = re.search(r"(?m)^\s*namespace\s+([\w\\]+)", code)
        spaces[name] = found[1] if found else ""
        for kind in re.findall(r"(?m)^\s*(?:abstract |final |readonly )*(?:class|interface|trait|enum)\s+(\w+)", code):
            full[f"{spaces[name]}\\{kind}".strip("\\")].add(name)
    pairs = set()
    for name, code in codes.items():
        names = {}
        for line in re.findall(r"(?m)^use\s+([\w\\ ]+);", code):
            path, _, alias = line.partition(" as ")
            path = path.strip("\\ ")
            names[alias.strip() or path.rpartition("\\")[2]] = path
        wanted = set(names.values())
        for word in set(re.findall(r"(?<![$\w\\>:])\\?[A-Z][\w\\]*", code)):
            if word.startswith("\\"):
                wanted.add(word[1:])
            elif word.partition("\\")[0] in names:
                head, _, rest = word.partition("\\")
                wanted.add(f"{names[head]}\\{rest}".strip("\\"))
            else:
                wanted.add(f"{spaces[name]}\\{word}".strip("\\"))
        for each in wanted:
            found_in = full.get(each, set())
            if len(found_in) == 1 and found_in != {name}:
                pairs.add((name, *found_in))
    return pairs


def terraform(texts: Texts) -> set[Pair]:
    pairs = set()
    folders: dict[str, list[str]] = defaultdict(list)
    for name in texts:
        folders[posixpath.dirname(name)].append(name)
    for folder, names in folders.items():
        where: dict[str, set[str]] = defaultdict(set)
        for name in names:
            code = without_comments(texts[name], ("#", "//"), ("/*", "*/"), "")
            for each in re.findall(r'(?m)^variable "([^"]+)"', code):
                where[f"var.{each}"].add(name)
            for each in re.findall(r'(?m)^module "([^"]+)"', code):
                where[f"module.{each}"].add(name)
            for each in re.findall(r'(?m)^resource "([^"]+)" "([^"]+)"', code):
                where[".".join(each)].add(name)
            for each in re.findall(r'(?m)^data "([^"]+)" "([^"]+)"', code):
                where["data." + ".".join(each)].add(name)
        for name in names:
            code = without_comments(texts[name], ("#", "//"), ("/*", "*/"), "")
            for address in set(re.findall(r"(?<![\w.])(?:data\.)?[a-z]\w*\.[\w-]+", code)):
                found = where.get(address, set())
                if len(found) == 1 and found != {name}:
                    pairs.add((name, *found))
            for source in re.findall(r'source\s*=\s*"(\.[./\w-]*)"', code):
                for other in folders.get(posixpath.normpath(posixpath.join(folder, source)).removeprefix("."), ()):
                    pairs.add((name, other))
    return pairs


def elixir(texts: Texts) -> set[Pair]:
    """Full names that one file alone defines, written out, through `alias`, or of a module around."""
    codes = {name: without_comments(text, ("#",), None, '"') for name, text in texts.items()}
    definers: dict[str, set[str]] = defaultdict(set)
    around: dict[str, list[str]] = defaultdict(list)
    for name, code in codes.items():
        stack: list[tuple[int, str]] = []
        for line in code.splitlines():
            parts = line.split()
            if len(parts) > 1 and parts[0] in ("defmodule", "defprotocol"):
                depth = len(line) - len(line.lstrip())
                stack = [each for each in stack if each[0] < depth]
                full = ".".join([*([stack[-1][1]] if stack else []), parts[1].strip(",")])
                stack.append((depth, full))
                definers[full].add(name)
                around[name].append(full)
    pairs = set()
    for name, code in codes.items():
        names = {full.rpartition(".")[2]: full for full in around[name] if "." in full}
        for line in code.splitlines():
            if line.strip().startswith("alias "):
                path, _, rename = line.split(None, 1)[1].partition(", as: ")
                head, brace, rest = path.partition("{")
                for each in rest.rstrip("}").split(",") if brace else [""]:
                    whole = (head + each.strip()).replace("__MODULE__", (around[name] or [""])[0]).strip()
                    first, dot, more = whole.partition(".")
                    whole = names.get(first, first) + dot + more
                    names[rename.strip() or whole.rpartition(".")[2]] = whole
        for word in set(re.findall(r"(?<![\w.:@])[A-Z][\w.]*", code)):
            steps = [step for step in word.split(".") if step[:1].isupper()]
            whole = ".".join([names.get(steps[0], steps[0]), *steps[1:]])
            if len(definers.get(whole, ())) == 1 and definers[whole] != {name}:
                pairs.add((name, *definers[whole]))
    return pairs


def perl(texts: Texts) -> set[Pair]:
    """Packages that one file alone declares: used, inherited in one line, or written out before ->."""
    pairs = set()
    holders: dict[str, set[str]] = defaultdict(set)
    for name, text in texts.items():
        for package in re.findall(r"(?m)^\s*package\s+([\w:]+)", text):
            holders[package].add(name)
    known = {package: min(names) for package, names in holders.items() if len(names) == 1}
    for name, text in texts.items():
        pod = False
        own = set(re.findall(r"(?m)^\s*package\s+([\w:]+)", text))
        for line in text.splitlines():
            if line.startswith("="):
                pod = not line.startswith("=cut")
            if line in ("__END__", "__DATA__"):
                break
            code = line.split("#")[0]
            if pod or not code.strip():
                continue
            wanted = set(re.findall(r"([A-Z]\w*(?:::\w+)*)->", re.sub(r"'[^']*'|\"[^\"]*\"", "", code)))
            if code.split()[0] in ("use", "require", "extends", "with"):
                wanted |= set(re.findall(r"[A-Z]\w*(?:::\w+)*", code))
            pairs |= {(name, known[each]) for each in wanted - own if known.get(each, name) != name}
    return pairs
