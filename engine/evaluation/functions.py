"""Cuts functions of held-out files into prefix, body and suffix. The text is never run."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from engine.data.syntax import grammar_name, parser_of
from engine.evaluation.parsing import leaves, parses

if TYPE_CHECKING:
    from tree_sitter import Node

SHORTEST, LONGEST = 20, 1200
"""Characters of an eligible body: long enough to be informative, short enough not to take minutes to write."""
MOST_LINES = 30
PER_FILE = 3
"""Maximum functions of one file, so that one large file does not stand for the repository."""
_LARGEST_FILE = 400_000

KINDS = {
    "Python": {"function_definition"},
    "JavaScript": {"function_declaration", "generator_function_declaration", "method_definition"},
    "Rust": {"function_item"},
    "Go": {"function_declaration", "method_declaration"},
    "Java": {"method_declaration", "constructor_declaration"},
    "C": {"function_definition"},
}
KINDS["TypeScript"] = KINDS["TSX"] = KINDS["JavaScript"]
KINDS["C++"] = KINDS["CUDA"] = KINDS["C"]


@dataclass(frozen=True)
class SourceText:
    """A file as the model reads it."""

    path: str
    language: str
    text: str


@dataclass(frozen=True)
class HeldOutFunction:
    """One function of a file that parses."""

    path: str
    language: str
    grammar: str
    "Name of its grammar (engine.data.syntax.parser_of)."
    prefix: str
    "The file up to the first line of the body; includes a Python docstring."
    body: str
    "The body up to the end of its last statement, or including the closing brace."
    suffix: str
    "The rest of the file."
    header: int
    "Index in `prefix` at which the function begins."

    @property
    def indent(self) -> int:
        """Column of the body's first statement."""
        return len(self.body) - len(self.body.lstrip(" \t"))


def choose_functions(
    files: Iterable[SourceText], most: int, fits: Callable[[HeldOutFunction], bool] = lambda _: True
) -> list[HeldOutFunction]:
    """Samples functions over all files, deterministically for the same files.

    Args:
        files: Files to search.
        most: Maximum number of functions.
        fits: Whether a body is short enough to request.
    """
    if most <= 0:
        return []
    found = [function for file in files for function in functions_of(file)]
    found.sort(key=_rank)
    taken: Counter[str] = Counter()
    chosen = []
    for function in found:
        if taken[function.path] < PER_FILE and fits(function):
            taken[function.path] += 1
            chosen.append(function)
        if len(chosen) == most:
            break
    return chosen


def _rank(function: HeldOutFunction) -> bytes:
    """Returns a pseudo-random sort key that depends on path and content only."""
    text = f"{function.path}\0{function.prefix[function.header :]}\0{function.body}"
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def functions_of(file: SourceText) -> Iterator[HeldOutFunction]:
    """Yields outermost functions whose bodies have lines of their own; none of a file that does not parse."""
    grammar = grammar_name(file.language, PurePosixPath(file.path))
    if grammar not in KINDS or len(file.text) > _LARGEST_FILE or not parses(file.text, grammar):
        return
    source = file.text.encode("utf-8", "replace")
    pending = [parser_of(grammar).parse(source).root_node]
    while pending:
        node = pending.pop()
        if node.type not in KINDS[grammar]:
            pending += reversed(node.children)
            continue
        span = _body(node, source, grammar)
        if span is None:
            continue
        begin, end = span
        function = HeldOutFunction(
            path=file.path,
            language=file.language,
            grammar=grammar,
            prefix=source[:begin].decode(),
            body=source[begin:end].decode(),
            suffix=source[end:].decode(),
            header=len(source[: node.start_byte].decode()),
        )
        if SHORTEST <= len(function.body.strip()) <= LONGEST and function.body.count("\n") < MOST_LINES:
            yield function


def _body(function: Node, source: bytes, grammar: str) -> tuple[int, int] | None:
    """Returns the byte range of the body, from a line start on; None if it shares its first line with other code."""
    body = function.child_by_field_name("body")
    if body is None:
        return None
    if grammar == "Python":
        first = body.named_children[0] if body.named_children else None
        if first is not None and _is_docstring(first):
            first = first.next_named_sibling
        if first is None:
            return None
        begin = source.rfind(b"\n", 0, first.start_byte) + 1
        # Only a backslash could continue the previous line into this one, and formatters remove those.
        return (begin, body.end_byte) if not source[begin : first.start_byte].strip() else None
    begin = source.find(b"\n", body.start_byte, body.end_byte) + 1
    if source[body.start_byte : body.start_byte + 1] != b"{" or not begin:
        return None
    return (begin, body.end_byte) if source[body.start_byte + 1 : begin].strip() == b"" else None


def _is_docstring(node: Node) -> bool:
    return (
        node.type == "expression_statement" and node.named_child_count == 1 and node.named_children[0].type == "string"
    )


# --- end of a function being written ------------------------------------------------------------------------

_OPEN = frozenset({"(", "[", "{", "${", "string_start"})
_CLOSE = frozenset({")", "]", "}", "string_end"})


def function_end(function: HeldOutFunction, written: str) -> int | None:
    """Returns how many characters of `written`, a partial body, belong to the function; None while it continues."""
    if function.grammar == "Python":
        return _dedent(function, written)
    source = ("{\n" + written).encode("utf-8", "replace")
    depth = 0
    for leaf in leaves(source, function.grammar):
        depth += (leaf.type in ("{", "${")) - (leaf.type == "}")
        if leaf.type == "}" and depth <= 0:
            end = len(source[: leaf.end_byte].decode()) - 2
            return None if _in_string(written[: end - 1]) else end
    return None


def _in_string(text: str) -> bool:
    """Whether a text ends inside a string, where the parser would read following text as code."""
    return bool(text.rpartition("\n")[2].count('"') % 2 or text.count("`") % 2)


def _dedent(function: HeldOutFunction, written: str) -> int | None:
    """Finds a statement left of the body's column, not in brackets, a string or a continued line, which ends it."""
    header = function.prefix[function.header :]
    # The header begins in the middle of its line; restore its blanks, so that columns of the body hold.
    source = (header + written).encode("utf-8", "replace")
    skip = len(header.encode("utf-8", "replace"))
    depth, end, continued = 0, skip, False
    for leaf in leaves(source, function.grammar):
        if leaf.start_byte >= skip and depth == 0 and leaf.start_point[1] < function.indent and not continued:
            line = source.rfind(b"\n", 0, leaf.start_byte) + 1
            if not source[line : leaf.start_byte].strip() and leaf.type != "comment":
                return len(source[skip:end].decode())
        depth = max(0, depth + (leaf.type in _OPEN) - (leaf.type in _CLOSE))
        continued = leaf.type == "line_continuation"
        if leaf.start_byte >= skip and leaf.type != "comment":
            end = leaf.end_byte
    return None
