"""Resolves Ruby's `require`, `require_relative` and `autoload` by paths, and constants by their definitions."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from engine.data.imports.rules import Files, ImportRules, Repository, Strength, Tails, joined, shared

_REQUIRE = re.compile(
    r"(?m)^[ \t]*(?:(require|require_relative|load|require_dependency|import)\b[ \t(]*"
    r"|(autoload)\b[ \t(]+:\w+[ \t]*,[ \t]*)((?:__dir__|File\.[^'\"\n]*?)?[ \t+,]*)['\"]([^'\"\n#]+)['\"]"
)
_NO_CODE = re.compile(
    r"(?m)^=begin\b[^=]*(?:=(?!end)[^=]*)*|#[^{\n][^\n]*|\"[^\"\\\n]*(?:\\.[^\"\\\n]*)*\"?|'[^'\\\n]*(?:\\.[^'\\\n]*)*'?"
)
_DEFINED = re.compile(
    r"(?m)^([ \t]*)(?:(class|module)[ \t]+(?!<<)((?:::)?[A-Z][\w:]*)[ \t]*(?:<[ \t]*((?:::)?[A-Z][\w:]*))?"
    r"|([A-Z]\w*)[ \t]*=[^=~>]|(end)\b)"
)
_CONSTANT = re.compile(r"(?<![\w:@$])(?:::)?[A-Z]\w*(?:::[A-Z]\w*)*")
_ROOTS = frozenset({"lib", "app", "src", "test", "spec"})
_SEVERAL = 3
"Files that may define a constant for it to count; a module of more is only opened there for what lies in it."


def scan(text: str) -> Iterator[str]:
    """Yields `"x` and `'x` for a path that is required or relative, `=A::B`, `<A::B` and `~A::B` for constants.

    A constant that is extended or mentioned stands behind the modules around the file's first class: `A::B|C`.
    """
    for found in _REQUIRE.finditer(text):
        relative = found[1] == "require_relative" or "__" in found[3]
        sign = "'" if relative else "'" if found[4].startswith(".") else '"'
        yield f"{sign}{found[4]}"
    code = _NO_CODE.sub(" ", text)
    open_: list[tuple[int, str]] = []
    scope = ""
    opened: set[str] = set()
    for found in _DEFINED.finditer(code):
        indent = len(found[1].expandtabs(8))
        if found[6]:
            while open_ and open_[-1][0] >= indent:
                open_.pop()
            continue
        while open_ and open_[-1][0] >= indent:
            open_.pop()
        around = "::".join(name for _, name in open_)
        name = (found[3] or found[5]).removeprefix("::")
        full = f"{around}::{name}" if around else name
        # A module that holds nothing but others is opened, not defined: many files do so.
        yield f"{':' if found[2] == 'module' else '='}{full}"
        opened.add(name)
        if found[4]:
            yield f"<{around}|{found[4].removeprefix('::')}"
        if found[2]:
            open_.append((indent, name))
            scope = max(scope, full, key=lambda each: (each.count("::"), len(each))) if full.count("::") < 6 else scope
    for name in dict.fromkeys(_CONSTANT.findall(code)):
        if name.removeprefix("::") in opened:
            continue
        yield f"~{'' if name.startswith('::') else scope}|{name.removeprefix('::')}"


class RubyRules(ImportRules):
    """Paths below the folders that Ruby loads from, and constants."""

    def __init__(self, files: Files, repository: Repository) -> None:
        files = list(files)
        self._by_path = {str(path): number for number, path in files}
        self._path = dict(files)
        self._tails = Tails(files)
        self._defined: dict[str, list[int]] = defaultdict(list)
        opened: dict[str, list[int]] = defaultdict(list)
        for number, _ in files:
            for word in repository.imports[number] if repository.imports else ():
                if word[0] == "=":
                    self._defined[word[1:]].append(number)
                elif word[0] == ":":
                    opened[word[1:]].append(number)
        for name, numbers in opened.items():
            named = [n for n in numbers if _is_named(self._path[n], name)]
            if named or len(numbers) <= 1:
                self._defined[name] += named or numbers
        for name, numbers in list(self._defined.items()):
            named = [n for n in numbers if _is_named(self._path[n], name)]
            if named:
                self._defined[name] = named

    def _links(self, number: int, path: PurePosixPath, wanted: Sequence[str]) -> Iterator[tuple[int, Strength]]:
        for word in wanted:
            if word[0] in "\"'":
                found = self._required(path, word[1:], relative=word[0] == "'")
                if found is not None:
                    yield found, Strength.IMPORT
            elif word[0] in "<~":
                yield from self._constant(number, path, word)

    def _required(self, path: PurePosixPath, name: str, *, relative: bool) -> int | None:
        name = name if name.endswith((".rb", ".rake")) else f"{name}.rb"
        if relative or name.startswith("."):
            return self._by_path.get(joined(path.parent, name.lstrip("/")))
        for root in (*path.parents, *(folder / root for folder in path.parents for root in sorted(_ROOTS))):
            found = self._by_path.get(f"{root}/{name}" if root.parts else name)
            if found is not None and (root.name in _ROOTS or root == path.parent or not root.parts):
                return found
        found = self._tails.nearest(name, path.parent)
        if found is None:
            return None
        root = self._path[found].parents[name.count("/")]
        return found if root.name in _ROOTS else None

    def _constant(self, number: int, path: PurePosixPath, word: str) -> Iterator[tuple[int, Strength]]:
        scope, _, name = word[1:].partition("|")
        around = scope.split("::") if scope else []
        parts = name.split("::")
        strength = Strength.BASE if word[0] == "<" else Strength.MENTION
        for length in range(len(parts), 0, -1):
            wanted = "::".join(parts[:length])
            for count in range(len(around), -1, -1):
                full = "::".join([*around[:count], wanted])
                found = self._defined.get(full, ())
                if not found:
                    continue
                if number not in found and len(set(found)) <= _SEVERAL:
                    folder = path.parent.parts
                    near = sorted(set(found), key=lambda n: -shared(folder, self._path[n].parent.parts))
                    yield near[0], strength if len(near) == 1 else Strength.GUESS
                return


def _underscored(name: str) -> str:
    """Returns the path that Zeitwerk expects a constant at, without its ending."""
    path = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", name.replace("::", "/"))
    return re.sub(r"([a-z\d])([A-Z])", r"\1_\2", path).lower()


def _is_named(path: PurePosixPath, constant: str) -> bool:
    """Tells whether a file lies where Zeitwerk expects its constant."""
    wanted = _underscored(constant).replace("_", "")
    own = str(path.with_suffix("")).lower().replace("_", "").replace("-", "")
    return own == wanted or own.endswith(f"/{wanted}")
