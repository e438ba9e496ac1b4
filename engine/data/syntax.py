"""Finds the imports of a source file, and the lines that it is best cut before.

Import statements are found by their first word and taken apart by their language's grammar (tree-sitter), which reads
text and never runs it; names that are defined and mentioned are found by engine.data.imports. Definitions are told by
the layout that people and formatters give them: to parse every body as well took between a third and the whole of the
time that tokenising takes. A wrong guess costs a cut in a worse place.
"""

from __future__ import annotations

import functools
import importlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from engine.data.history import LANGUAGE as DIFF
from engine.data.imports import scanner
from engine.data.imports.rust import INLINE
from engine.data.languages import NOTEBOOK

if TYPE_CHECKING:
    import numpy.typing as npt
    from tree_sitter import Node, Parser

REVISION = 11
"Raised when files would be ordered or cut otherwise; part of every store's key."
_DEEPEST = 12
"Lists within lists of one import that are followed; a hostile file may nest thousands."


@dataclass(frozen=True, slots=True)
class Outline:
    """What the text of a file tells."""

    imports: tuple[str, ...]
    "As the file writes them, in the notation of engine.data.imports for its language."
    definitions: npt.NDArray[np.uint32]
    "Lines, counted from 0, that a definition or what stands above it begins on; ascending, without line 0."


@dataclass(frozen=True)
class _Grammar:
    package: str
    function: str
    statement: re.Pattern[str] | None = None
    "An import, behind the line end before it, as the first group; None where engine.data.imports finds them."
    kinds: frozenset[str] = frozenset()
    "Nodes that import."
    read: Callable[[Node], Iterator[str]] = lambda _: iter(())
    "What such a node imports."


def grammar_name(language: str, path: PurePosixPath) -> str | None:
    """The name under which `parser_of` knows a file's grammar; None where there is none for its language."""
    name = "TSX" if language == "TypeScript" and path.suffix == ".tsx" else language
    return name if name in _GRAMMARS and name != NOTEBOOK else None


def outline(text: str, language: str, path: PurePosixPath) -> Outline:
    """The outline of a file's text; without imports where no grammar is known for its language."""
    name = "TSX" if language == "TypeScript" and path.suffix == ".tsx" else language
    imports: Iterable[str] = ()
    # Lines and their numbers stay; patterns that look for the end of one need not know of two ways to write it.
    text = text.replace("\r\n", "\n")
    if (scan := scanner(language)) is not None:
        imports = scan(text, path)
    elif name in _GRAMMARS:
        # The patterns begin with a line end: that is found several times as fast as the start of a line.
        imports = _imports(f"\n{text}", _GRAMMARS[name], name)
        if language == "TypeScript":
            imports = (*imports, *(f"type:./{path}" for path in _REFERENCE.findall(text)))
        if language == "Rust":
            imports = (*imports, *(f"~{inline}" for inline in INLINE.findall(text)))
    elif language in ("Vue", "Svelte"):
        imports = _COMPONENT.findall(text)
    # A repository imports the same few things over and over.
    return Outline(tuple(map(sys.intern, dict.fromkeys(imports))), _lines_of(text, _borders(text, name)))


def _imports(text: str, grammar: _Grammar, name: str) -> Iterable[str]:
    assert grammar.statement is not None
    statements = "".join(f"{found[1]}\n" for found in grammar.statement.finditer(text))
    if not statements:
        return ()
    imports: dict[str, None] = {}
    pending = [parser_of(name).parse(statements.encode("utf-8", "replace")).root_node]
    while pending:
        node = pending.pop()
        if node.type in grammar.kinds:
            imports |= dict.fromkeys(grammar.read(node))
        elif node.parent is None or node.type == "ERROR":
            pending += reversed(node.children)
    return imports


@functools.cache
def parser_of(name: str) -> Parser:
    """The parser of a grammar that `grammar_name` gave."""
    from tree_sitter import Language, Parser

    grammar = _GRAMMARS[name]
    return Parser(Language(getattr(importlib.import_module(grammar.package), grammar.function)()))


# --- where definitions begin -------------------------------------------------------------------------------

_PYTHON = re.compile(r"\n(?: {4}|\t)?(?:def|class|async[ ]def)\b")
_ABOVE_IN_PYTHON = re.compile(r"[ \t]*[#@)]")
"How a line begins that belongs to the definition below it: comments, decorators and what ends one."
_CELLS = re.compile(r"\n(?=# %%)")
_CHANGES = re.compile(r"\n(?=--- |@@ )")
_LAYOUT = re.compile(
    r"\n[ \t\r]*\n(?=[^\s})\]])"
    r"|\n(?P<indent>[ ]{1,4}|\t)(?:\}[;,]?|end)[ \t\r]*\n(?:[ \t\r]*\n)+(?=(?P=indent)[^\s})\]])"
    r"|\n[ \t\r]*\n(?="
    r"(?:[ ]{1,8}|\t\t?)(?:/\*\*|///|@[A-Z]|\[[A-Z]\w*[\](]|(?:public|private|protected|internal|override)\b)"
    r"|(?:[ ]{1,4}|\t)(?:abstract|static|suspend|operator|fun|func|function|def)\b)"
)
"""Where a definition begins: after a blank line at the left edge; after a closed block one step in, a blank line, and
one step in again; and after a blank line with a comment, an annotation or a word that definitions begin with, one or
two steps in. Parsers of C#, Java, TypeScript, Kotlin and C++ place 1 to 9% of these within a function."""


def _borders(text: str, name: str) -> Iterator[int]:
    """Where the text is best cut, ascending."""
    if name == "Python":
        for found in _PYTHON.finditer(text):
            start = found.start() + 1
            while (above := text.rfind("\n", 0, start - 1) + 1) < start and _ABOVE_IN_PYTHON.match(text, above):
                start = above
            yield start
    else:
        pattern = {DIFF: _CHANGES, NOTEBOOK: _CELLS}.get(name, _LAYOUT)
        for found in pattern.finditer(text):
            yield found.end()


def _lines_of(text: str, positions: Iterable[int]) -> npt.NDArray[np.uint32]:
    """The lines that ascending positions of a text are on, without line 0."""
    lines: list[int] = []
    seen = line = 0
    for position in positions:
        line += text.count("\n", seen, position)
        seen = max(seen, position)
        lines.append(line)
    return np.array([line for line in lines if line], dtype=np.uint32)


# --- languages ---------------------------------------------------------------------------------------------


def _text(node: Node | None) -> str:
    return node.text.decode("utf-8", "replace") if node is not None and node.text is not None else ""


def _python(node: Node) -> Iterator[str]:
    """`a.b` for `import a.b`; `..a:b` for `from ..a import b`, with `:*` for all."""
    names = [_text(child.child_by_field_name("name") or child) for child in node.children_by_field_name("name")]
    if node.type == "import_statement":
        yield from names
    else:
        module = re.sub(r"\s", "", _text(node.child_by_field_name("module_name")))
        for name in names or ["*"]:
            yield f"{module}:{name}"


def _javascript(node: Node) -> Iterator[str]:
    """What stands between the quotation marks of `import`, `export … from` and `require`; `type:…` for types alone."""
    text = _text(node)
    for found in re.finditer(r"(['\"])([^'\"\n]+)\1[\s;)]*$", text):
        yield f"type:{found[2]}" if _TYPES_ALONE.match(text) else found[2]


_TYPES_ALONE = re.compile(r"(?:import|export)\s+type\b(?!\s*(?:,|from\b))")


_ATTRIBUTE = re.compile(r"#\[path\s*=\s*\"([^\"]+)\"\]")


def _rust(node: Node) -> Iterator[str]:
    """`mod:a` for `mod a;`, else each path of a `use`, lists written out."""
    if node.type == "mod_item":
        if node.child_by_field_name("body") is None:
            written = _ATTRIBUTE.search(_text(node.prev_sibling)) if node.prev_sibling is not None else None
            yield f"mod:{_text(node.child_by_field_name('name'))}" + (f"={written[1]}" if written else "")
    elif node.type == "extern_crate_declaration":
        yield _text(node.child_by_field_name("name"))
    else:
        yield from _written_out(re.sub(r"\s+as\s+\w+|\s", "", _text(node.child_by_field_name("argument"))))


def _written_out(path: str) -> Iterator[str]:
    """`a::b` and `a::c` of `a::{b,c}`."""
    head, brace, rest = path.partition("{")
    if not brace:
        yield path
        return
    depth, start = 0, 0
    inner = rest[:-1]
    for position, letter in enumerate(inner + ","):
        depth += (letter == "{") - (letter == "}")
        if letter == "," and depth == 0:
            item = inner[start:position]
            start = position + 1
            if item and item.count("{") < _DEEPEST:
                yield from (head + part for part in _written_out(item))


# A statement goes on until the next one begins, so that each letter is looked at once: text may be made to be slow.
_SCRIPT_STATEMENT = re.compile(
    r"\n(import\b[^;'\"()\n]*(?:\n(?!import\b|export\b)[^;'\"()\n]*)*['\"][^'\"\n]+['\"]"
    r"|export\b(?:[ \t]+type\b)?[ \t]*"
    r"(?:\*[^;'\"()=\n]*|\{[^}'\"()\n]*(?:\n(?!import\b|export\b)[^}'\"()\n]*)*\}[ \t]*)"
    r"\bfrom\b[ \t]*['\"][^'\"\n]+['\"]"
    r"|import[ \t]+\w+[ \t]*=[ \t]*require\([^)\n]*\)"
    r"|(?:(?:const|let|var)\b[^;()=\n]*(?:\n[ \t}][^;()=\n]*)*=[ \t]*|module\.exports[ \t]*=[ \t]*)?require\([^)\n]*\))"
)
_REFERENCE = re.compile(r"(?m)^///[ \t]*<reference[ \t]+path[ \t]*=[ \t]*['\"]([^'\"\n]+)['\"]")
_COMPONENT = re.compile(r"(?m)^[ \t]*import\b[^'\"\n;]*['\"]([^'\"\n]+)['\"]")
_SCRIPT = (
    _SCRIPT_STATEMENT,
    frozenset(
        {"import_statement", "export_statement", "lexical_declaration", "variable_declaration", "expression_statement"}
    ),
    _javascript,
)
_PYTHON_STATEMENT = re.compile(
    # At the top level, or first in a block of it; `if TYPE_CHECKING:` holds what would be a cycle when it runs.
    r"\n(?:(?:try|except|else|if(?![^\n]*\bTYPE_CHECKING))\b[^\n]*:[ \t]*\n[ \t]+)?"
    r"((?:import|from)\b[^\n(]*(?:\([^)]*\)?|(?<=\\)\n[^\n]*)?)"
)
_PYTHON_IMPORTS = (_PYTHON_STATEMENT, frozenset({"import_statement", "import_from_statement"}), _python)
_GRAMMARS = {
    "Python": _Grammar("tree_sitter_python", "language", *_PYTHON_IMPORTS),
    NOTEBOOK: _Grammar("tree_sitter_python", "language", *_PYTHON_IMPORTS),
    "JavaScript": _Grammar("tree_sitter_javascript", "language", *_SCRIPT),
    "TypeScript": _Grammar("tree_sitter_typescript", "language_typescript", *_SCRIPT),
    "TSX": _Grammar("tree_sitter_typescript", "language_tsx", *_SCRIPT),
    "Rust": _Grammar(
        "tree_sitter_rust",
        "language",
        re.compile(
            r"\n((?:#\[path[ \t]*=[ \t]*\"[^\"\n]+\"\][ \t]*\n?[ \t]*)?(?:pub(?:\([^)\n]*\))?[ \t]+)?"
            r"(?:mod[ \t]+\w+[ \t]*;|use\b[^;\n]*(?:\n(?!use\b|mod\b|pub\b)[^;\n]*)*;"
            r"|extern[ \t]+crate[ \t]+\w+[^;\n]*;))"
        ),
        frozenset({"mod_item", "use_declaration", "extern_crate_declaration"}),
        _rust,
    ),
    "Go": _Grammar("tree_sitter_go", "language"),
    "Java": _Grammar("tree_sitter_java", "language"),
    "C": _Grammar("tree_sitter_c", "language"),
    "C++": _Grammar("tree_sitter_cpp", "language"),
    "CUDA": _Grammar("tree_sitter_cpp", "language"),
}
