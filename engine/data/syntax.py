"""What a source file imports and where its definitions begin, by its language's grammar (tree-sitter).

The parser reads text and never runs it; what it cannot parse it steps over. A language is a row of `_GRAMMARS`: which
nodes import, which define, and into which to look for more. Python's definitions are told by the first word of their
line, and only the part of a file that imports is parsed: to parse every body would take a third of the time that its
tokens take.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from engine.data.history import LANGUAGE as DIFF

if TYPE_CHECKING:
    import numpy.typing as npt
    from tree_sitter import Node, Parser

REVISION = 2
"Raised when files would be ordered or cut otherwise; part of every store's key."
_DEEPEST = 12
"Nested scopes that are looked into; a hostile file may nest thousands."


@dataclass(frozen=True)
class Outline:
    """What the syntax of a file tells."""

    imports: tuple[str, ...]
    "As the file writes them, in the notation of engine.data.imports for its language."
    definitions: npt.NDArray[np.uint32]
    "Lines, counted from 0, that a definition or the comment before it begins on; ascending, without line 0."


_PYTHON_IMPORT = re.compile(
    r"\n(?:(?:try|except|else|if)\b[^\n]*:[ \t]*\n[ \t]+)?(?:import|from)\b[^\n(]*(?:\([^)]*\))?"
)
"An import at the top level, or first in a block of it."
_PYTHON_DEFINITION = re.compile(r"\n(?: {4}|\t)?(?:def|class|async[ ]def)\b")
_ABOVE_IN_PYTHON = re.compile(r"[ \t]*[#@)]")
"How a line begins that belongs to the definition below it: comments, decorators and what ends one."
_AFTER_BLANK = re.compile(r"\n[ \t\r]*\n(?=\S)")
_IN_DIFFS = re.compile(r"\n(?=--- |@@ )")
"How the blocks of text without a grammar begin."


@dataclass(frozen=True)
class _Grammar:
    package: str
    function: str
    imports: Callable[[Node], Iterator[str]]
    importing: frozenset[str]
    "Nodes that may import."
    defining: frozenset[str]
    "Nodes that are worth a cut before them."
    scopes: frozenset[str]
    "Nodes that hold more of both."


def outline(text: str, language: str, path: PurePosixPath) -> Outline:
    """The outline of a file's text; where no grammar is known for its language, of its layout."""
    name = "TSX" if language == "TypeScript" and path.suffix == ".tsx" else language
    if name == "Python":
        return _python_outline(text)
    if name not in _GRAMMARS:
        borders = (_IN_DIFFS if language == DIFF else _AFTER_BLANK).finditer(text)
        return Outline((), _lines_of(text, (found.end() for found in borders)))
    return _outline(text, name)


def _python_outline(text: str) -> Outline:
    # The patterns begin with a line end: that is found several times as fast as the start of a line.
    framed = f"\n{text}"
    head = max((found.end() for found in _PYTHON_IMPORT.finditer(framed)), default=0)
    imports = _outline(framed[:head], "Python").imports if head else ()
    starts = []
    for found in _PYTHON_DEFINITION.finditer(text):
        start = found.start() + 1
        while (above := text.rfind("\n", 0, start - 1) + 1) < start and _ABOVE_IN_PYTHON.match(text, above):
            start = above
        starts.append(start)
    return Outline(imports, _lines_of(text, starts))


def _outline(text: str, name: str) -> Outline:
    parser, grammar = _parser(name), _GRAMMARS[name]
    imports: list[str] = []
    lines: list[int] = []
    _visit(parser.parse(text.encode("utf-8", "replace")).root_node, grammar, imports, lines, _DEEPEST)
    rows = np.unique(np.array(lines, dtype=np.uint32))
    return Outline(tuple(dict.fromkeys(imports)), rows[rows > 0])


def _lines_of(text: str, positions: Iterable[int]) -> npt.NDArray[np.uint32]:
    """The lines that ascending positions of a text are on, without line 0."""
    lines: list[int] = []
    seen = line = 0
    for position in positions:
        line += text.count("\n", seen, position)
        seen = position
        lines.append(line)
    return np.array([line for line in lines if line], dtype=np.uint32)


@functools.cache
def _parser(name: str) -> Parser:
    from tree_sitter import Language, Parser

    grammar = _GRAMMARS[name]
    return Parser(Language(getattr(importlib.import_module(grammar.package), grammar.function)()))


def _visit(scope: Node, grammar: _Grammar, imports: list[str], lines: list[int], depth: int) -> None:
    above: Node | None = None  # the first of the comments and attributes that stand directly above the present node
    last = -1  # the line that they end on
    for node in scope.children:
        kind = node.type
        if kind in _ABOVE:
            if above is None or node.start_point[0] > last + 1:
                above = node
            last = node.end_point[0]
            continue
        if kind in grammar.importing:
            imports += grammar.imports(node)
        if kind in grammar.defining and scope.type not in _WRAPPERS and node.end_point[0] > node.start_point[0]:
            attached = above is not None and node.start_point[0] <= last + 1
            lines.append(above.start_point[0] if above is not None and attached else node.start_point[0])
        if kind in grammar.scopes and depth and not _only_for_types(node):
            _visit(node, grammar, imports, lines, depth - 1)
        above = None


# --- languages ---------------------------------------------------------------------------------------------


_ABOVE = frozenset({"comment", "line_comment", "block_comment", "attribute_item"})
_WRAPPERS = frozenset({"decorated_definition", "export_statement", "template_declaration"})
"What they hold begins with them."


def _kinds(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _text(node: Node | None) -> str:
    return node.text.decode("utf-8", "replace") if node is not None and node.text is not None else ""


def _only_for_types(node: Node) -> bool:
    """`if TYPE_CHECKING:` holds what would be a cycle of imports when it runs, and tells nothing of the order."""
    condition = node.child_by_field_name("condition") if node.type == "if_statement" else None
    return _text(condition).endswith("TYPE_CHECKING")


def _python(node: Node) -> Iterator[str]:
    """`a.b` for `import a.b`; `..a:b` for `from ..a import b`, with `:*` for all."""
    names = [_text(child.child_by_field_name("name") or child) for child in node.children_by_field_name("name")]
    if node.type == "import_statement":
        yield from names
    else:
        module = re.sub(r"\s", "", _text(node.child_by_field_name("module_name")))
        for name in names or ["*"]:
            yield f"{module}:{name}"


_REQUIRED = re.compile(r"\brequire\(\s*(['\"])([^'\"\n]+)\1\s*\)")


def _javascript(node: Node) -> Iterator[str]:
    """What stands between the quotation marks of `import`, `export … from` and `require`."""
    if (source := node.child_by_field_name("source")) is not None:
        yield _text(source)[1:-1]
    elif node.type in ("import_statement", "lexical_declaration", "variable_declaration", "expression_statement"):
        # Text search, and not on whole programs wrapped in one call.
        text = _text(node)[:2000]
        yield from (found[2] for found in _REQUIRED.finditer(text))


def _rust(node: Node) -> Iterator[str]:
    """`mod:a` for `mod a;`, else each path of a `use`, lists written out."""
    if node.type == "mod_item":
        if node.child_by_field_name("body") is None:
            yield f"mod:{_text(node.child_by_field_name('name'))}"
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


def _go(node: Node) -> Iterator[str]:
    """The path between the quotation marks."""
    for found in re.finditer(r'"([^"\n]+)"', _text(node)):
        yield found[1]


def _java(node: Node) -> Iterator[str]:
    """`a.b.C`, or `a.b.*`; of a static import also the member."""
    yield re.sub(r"^import(static)?|;$", "", re.sub(r"\s", "", _text(node)))


def _c(node: Node) -> Iterator[str]:
    """`"x.h"` or `<x.h>`, as written."""
    yield _text(node.child_by_field_name("path"))


_SCRIPT = _kinds(
    """
    function_declaration generator_function_declaration class_declaration abstract_class_declaration
    interface_declaration type_alias_declaration enum_declaration export_statement lexical_declaration
    variable_declaration expression_statement method_definition internal_module module
    """
)
_SCRIPT_SCOPES = _kinds(
    """
    export_statement class_declaration abstract_class_declaration class_body internal_module module statement_block
    """
)
_SCRIPT_IMPORTS = _kinds(
    "import_statement export_statement lexical_declaration variable_declaration expression_statement"
)
_C_FAMILY = _kinds(
    """
    function_definition struct_specifier union_specifier enum_specifier class_specifier type_definition
    template_declaration namespace_definition declaration preproc_function_def field_declaration
    """
)
_C_SCOPES = _kinds(
    """
    preproc_if preproc_ifdef preproc_else preproc_elif linkage_specification namespace_definition declaration_list
    class_specifier field_declaration_list template_declaration
    """
)
_C_IMPORTS = _kinds("preproc_include")
_GRAMMARS = {
    "Python": _Grammar(
        "tree_sitter_python",
        "language",
        _python,
        _kinds("import_statement import_from_statement"),
        _kinds("function_definition class_definition decorated_definition"),
        _kinds(
            """
            class_definition decorated_definition block if_statement else_clause elif_clause try_statement
            except_clause with_statement
            """
        ),
    ),
    "JavaScript": _Grammar("tree_sitter_javascript", "language", _javascript, _SCRIPT_IMPORTS, _SCRIPT, _SCRIPT_SCOPES),
    "TypeScript": _Grammar(
        "tree_sitter_typescript", "language_typescript", _javascript, _SCRIPT_IMPORTS, _SCRIPT, _SCRIPT_SCOPES
    ),
    "TSX": _Grammar("tree_sitter_typescript", "language_tsx", _javascript, _SCRIPT_IMPORTS, _SCRIPT, _SCRIPT_SCOPES),
    "Rust": _Grammar(
        "tree_sitter_rust",
        "language",
        _rust,
        _kinds("mod_item use_declaration"),
        _kinds(
            """
            function_item struct_item enum_item union_item impl_item trait_item mod_item macro_definition const_item
            static_item function_signature_item
            """
        ),
        _kinds("mod_item impl_item trait_item declaration_list"),
    ),
    "Go": _Grammar(
        "tree_sitter_go",
        "language",
        _go,
        _kinds("import_declaration"),
        _kinds("function_declaration method_declaration type_declaration const_declaration var_declaration"),
        frozenset(),
    ),
    "Java": _Grammar(
        "tree_sitter_java",
        "language",
        _java,
        _kinds("import_declaration"),
        _kinds(
            """
            class_declaration interface_declaration enum_declaration record_declaration annotation_type_declaration
            method_declaration constructor_declaration
            """
        ),
        _kinds(
            """
            class_declaration interface_declaration enum_declaration record_declaration class_body interface_body
            enum_body enum_body_declarations
            """
        ),
    ),
    "C": _Grammar("tree_sitter_c", "language", _c, _C_IMPORTS, _C_FAMILY, _C_SCOPES),
    "C++": _Grammar("tree_sitter_cpp", "language", _c, _C_IMPORTS, _C_FAMILY, _C_SCOPES),
    "CUDA": _Grammar("tree_sitter_cpp", "language", _c, _C_IMPORTS, _C_FAMILY, _C_SCOPES),
}
