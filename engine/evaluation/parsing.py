"""Checks whether text parses, and extracts its names. The text is never run or imported."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from engine.data.syntax import parser_of

if TYPE_CHECKING:
    from tree_sitter import Node


def leaves(source: bytes, grammar: str) -> Iterator[Node]:
    """Yields the tokens of a source in order, even if it does not parse; a comment is one token."""
    pending = [parser_of(grammar).parse(source).root_node]
    while pending:
        node = pending.pop()
        if node.child_count and "comment" not in node.type:
            pending += reversed(node.children)
        elif node.end_byte > node.start_byte:
            yield node


def is_name(leaf: Node) -> bool:
    """Whether a leaf is an identifier; JavaScript's grammar has a `shorthand_property_identifier_pattern` too."""
    return leaf.type.removesuffix("_pattern").endswith("identifier")


def parses(text: str, grammar: str) -> bool:
    """Whether a whole file is well formed: its tree has no ERROR and no MISSING node; Python must also compile.

    The byte code of `compile` is discarded.
    """
    if parser_of(grammar).parse(text.encode("utf-8", "replace")).root_node.has_error:
        return False
    return grammar != "Python" or _compiles(text)


def _compiles(text: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the text's own escapes and comparisons may warn
            compile(ast.parse(text), "<completion>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def has_code(text: str, grammar: str) -> bool:
    """Whether a text holds more than blanks, comments and closing brackets."""
    found = leaves(text.encode("utf-8", "replace"), grammar)
    return any("comment" not in leaf.type and leaf.type not in ("}", ")", "]", ";") for leaf in found)


def identifiers(text: str, grammar: str) -> frozenset[str]:
    """Returns the names that a piece of code uses, whether or not it parses."""
    found = leaves(text.encode("utf-8", "replace"), grammar)
    return frozenset(leaf.text.decode("utf-8", "replace") for leaf in found if leaf.text and is_name(leaf))
