"""Formats completed functions as diffs against the file's own body, with syntax colours. Pure functions."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING

from pygments.lexers import find_lexer_class_for_filename
from pygments.token import Token
from textual.content import Content
from textual.highlight import HighlightTheme, highlight

from elite_tui.format.figures import printable
from engine.quantities import counted

if TYPE_CHECKING:
    from elite_tui.runs.report import Sample

AT_ONCE = 3
"""Functions shown together."""
COLUMN = 44
"""Minimum width of bodies side by side, in cells."""
LINES = 60
"""Lines shown of one body."""
LONGEST_LINE = 400
"""Characters shown of a line."""
PROMPT_LINES = 4
GUTTER = 2
"""Cells for the sign of a line."""
TAB = 4

SAME, MISSING, WRITTEN = " ", "-", "+"
_STYLES = {SAME: "", MISSING: "$text-warning", WRITTEN: "$text-accent"}
_NOTHING = "(nothing)"


class _Syntax(HighlightTheme):
    """Syntax colours that reach a contrast of 4.5:1 in every theme of this app."""

    STYLES = {  # noqa: RUF012 - as in the base class
        Token.Comment: "$muted italic",
        Token.Keyword: "bold $secondary",
        Token.Literal.String: "$success",
        Token.Literal.Number: "$accent",
        Token.Name.Decorator: "$secondary",
        Token.Name.Function: "bold",
        Token.Name.Class: "bold",
        Token.Operator.Word: "bold $secondary",
    }


def function_diffs(samples: Sequence[Sample], first: int, width: int) -> list[Content]:
    """Formats functions as both models completed them, beside the file's own bodies.

    Args:
        samples: All functions, untrusted.
        first: The first one to show.
        width: Available columns.
    """
    lines: list[Content] = []
    for number, sample in enumerate(samples[first : first + AT_ONCE], start=first + 1):
        if lines:
            lines.append(Content(""))
        head = Content.assemble((f"function {number} of {len(samples)}", "bold"), f"  {printable(sample.file)}")
        lines += head.fold(width)
        prompt = _code(sample.prompt, sample.file)[-PROMPT_LINES:]
        lines += [line for whole in prompt for line in Content.assemble("  ", whole).fold(width)]
        parts = [
            _body("base model", "$secondary", sample.before, sample),
            _body("fine-tuned", "$primary", sample.after, sample),
        ]
        truth = [_truth(sample)] if sample.truth else []
        if width >= COLUMN * len(parts + truth):
            lines += _beside(parts + truth, width)
        elif width >= COLUMN * len(parts):
            lines += [*_beside(parts, width), *_in_turn(truth, width)]
        else:
            lines += _in_turn(parts + truth, width)
    return lines


Part = tuple[Content, list[tuple[str, Content]]]
"""Title, and each line with its sign."""


def _body(title: str, style: str, text: str, sample: Sample) -> Part:
    """Compares a model's body with the file's own, line by line."""
    head = Content.styled(title, f"bold {style}")
    written = _code(text, sample.file)
    if not sample.truth:
        return head, [(SAME, line) for line in written] or [(SAME, Content(_NOTHING))]
    own = _code(sample.truth, sample.file)
    plain, target = [line.plain.rstrip() for line in written], [line.plain.rstrip() for line in own]
    lines: list[tuple[str, Content]] = []
    for what, a, b, c, d in difflib.SequenceMatcher(None, target, plain, autojunk=False).get_opcodes():
        if what == "equal":
            lines += [(SAME, line) for line in written[c:d]]
        else:
            lines += [(MISSING, line) for line in own[a:b]]
            lines += [(WRITTEN, line) for line in written[c:d]]
    missing, added = (sum(sign == wanted for sign, _ in lines) for wanted in (MISSING, WRITTEN))
    verdict = f"{counted(missing, 'line')} missing, {added:,} other" if missing or added else "as in the file"
    return head.append(Content.styled(f"  {verdict}", "$muted")), lines or [(SAME, Content(_NOTHING))]


def _truth(sample: Sample) -> Part:
    return Content.styled("the file's own", "bold $muted"), [(SAME, line) for line in _code(sample.truth, sample.file)]


def _folded(part: Part, width: int) -> list[Content]:
    """Folds the lines of a body to a width, none of their text left out."""
    lines = [part[0].truncate(width, ellipsis=True)]
    for sign, line in part[1]:
        for index, piece in enumerate(line.fold(max(2, width - GUTTER)) if line else [line]):
            lines.append(Content.assemble((f"{sign if not index else ' '} ", f"bold {_STYLES[sign]}".strip()), piece))
    return lines


def _beside(parts: Sequence[Part], width: int) -> list[Content]:
    free = (width - 3 * (len(parts) - 1)) // len(parts)
    columns = [_folded(part, free) for part in parts]
    lines = []
    for row in range(max(len(column) for column in columns)):
        cells = [column[row] if row < len(column) else Content("") for column in columns]
        padded = [cell.pad_right(max(0, free - cell.cell_length)) for cell in cells]
        lines.append(Content.styled(" │ ", "$faint").join(padded))
    return lines


def _in_turn(parts: Sequence[Part], width: int) -> list[Content]:
    return [line for part in parts for line in _folded(part, width)]


@functools.lru_cache(maxsize=256)
def _code(text: str, path: str) -> list[Content]:
    """Splits untrusted code into lines with syntax colours; control characters are escaped, long texts cut and said."""
    found = text.strip("\n").splitlines()
    shown = [printable(line[:LONGEST_LINE].expandtabs(TAB)) for line in found[:LINES]]
    coloured = highlight("\n".join(shown), language=_language(path), theme=_Syntax, tab_size=TAB)
    lines = coloured.split("\n") if shown else []
    if [line.plain for line in lines] != shown:
        lines = [Content(line) for line in shown]
    lines = [
        line.append(Content.styled("…", "$muted")) if len(full) > LONGEST_LINE else line
        for line, full in zip(lines, found, strict=False)
    ]
    if len(found) > LINES:
        lines.append(Content.styled(f"… {counted(len(found) - LINES, 'more line')}", "$muted"))
    return lines


def _language(path: str) -> str:
    name = PurePath(path.replace("\0", "")).name
    lexer = find_lexer_class_for_filename(name) if name else None
    aliases: Sequence[str] = lexer.aliases if lexer is not None else ()
    return aliases[0] if aliases else "text"
