"""Lays out text: bars, history lines and hanging indents."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content

TIGHT = 0.9
"Share from which a level is marked as tight, in addition to its colour."
_EIGHTHS = " ▏▎▍▌▋▊▉"
_HISTORY = "▁▂▃▄▅▆▇█"


def bar(share: float | None, width: int) -> str:
    """Draws a bar of `width` cells, filled to an eighth of a cell. An unknown share is a dotted line."""
    if share is None:
        return "┄" * width
    eighths = round(min(1.0, max(0.0, share)) * width * 8)
    full, part = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[part] if part else "")).ljust(width)


def line_bar(share: float | None, width: int) -> str:
    """Draws a thin bar of at most `width` cells, to half a cell, for use beside figures in a table."""
    halves = 0 if share is None else round(min(1.0, max(0.0, share)) * width * 2)
    full, half = divmod(halves, 2)
    return ("━" * full + "╸" * half).ljust(width)


def history_line(history: Sequence[float | None], cells: int) -> str:
    """Draws the newest shares as small columns, one per sample; unknown ones are gaps."""
    newest = list(history)[-cells:]
    drawn = "".join(" " if share is None else _HISTORY[min(7, max(0, round(share * 8 - 0.5)))] for share in newest)
    return drawn.rjust(cells)


def hanging(head: Content, text: Content, width: int) -> list[Content]:
    """Places text beside a head, with a hanging indent."""
    pieces = text.wrap(max(16, width - head.cell_length)) or [Content("")]
    indent = Content(" " * head.cell_length)
    return [(head if index == 0 else indent).append(piece) for index, piece in enumerate(pieces)]
