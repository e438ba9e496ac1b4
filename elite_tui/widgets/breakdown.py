"""The memory sum of a plan: one stacked bar a place, and below it every part with its formula."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from textual.content import Content
from textual.widgets import Static

from elite_tui.figures import bytes_in_words, percent_in_words, printable

if TYPE_CHECKING:
    from engine.plan.memory import Part

PLACE_TITLES = {"gpu": "GPU", "host": "RAM", "disk": "Disk"}

FILLS = "█▓▒░▚▞▤▦"
"Each part has a fill of its own, so the bar reads without colour."
STYLES = ("$primary", "$secondary", "$accent", "$success", "$primary-lighten-2", "$secondary-lighten-2", "$warning")


def parts_of(parts: Iterable[Part], place: str) -> list[Part]:
    """The parts in one place that take any room, largest first."""
    return sorted((part for part in parts if part.where == place and part.bytes > 0), key=lambda part: -part.bytes)


def stacked_cells(sizes: Sequence[int], limit: int, width: int) -> list[int]:
    """Cells of each part on a bar of `width` cells that stands for `limit` bytes.

    Boundaries are rounded, not parts, so the parts never add up to more than their sum; what exceeds the limit
    is cut at the end of the bar.
    """
    cells, total, drawn = [], 0, 0
    for size in sizes:
        total += size
        edge = min(width, round(total / limit * width)) if limit > 0 else width
        cells.append(edge - drawn)
        drawn = edge
    return cells


def key_of(index: int) -> tuple[str, str]:
    """Fill and style of the part at a place in the order of size."""
    return FILLS[index % len(FILLS)], STYLES[index % len(STYLES)]


def breakdown(parts: Sequence[Part], limits: dict[str, int | None], width: int) -> Content:
    """Bars and sums of every place that the plan uses.

    Args:
        parts: The ledger's lines.
        limits: Place → bytes there are; None where unknown.
        width: Cells of a line.
    """
    lines: list[Content] = []
    for place, title in PLACE_TITLES.items():
        here = parts_of(parts, place)
        if not here:
            continue
        total, limit = sum(part.bytes for part in here), limits.get(place)
        if lines:
            lines.append(Content(""))
        of_limit = f" of {bytes_in_words(limit)} ({percent_in_words(total / limit)})" if limit else ""
        head = Content.assemble((f"{title} ", "bold"), f"{bytes_in_words(total)}{of_limit}")
        if limit and total > limit:
            head = head.append(Content.styled("  ✗ too much", "$text-error bold"))
        lines.append(head)
        lines.append(_stacked_bar([part.bytes for part in here], max(limit or 0, total), width))
        name_width = max(len(printable(part.name)) for part in here)
        for index, part in enumerate(here):
            fill, style = key_of(index)
            line = Content.assemble(
                (f"{fill} ", style), f"{printable(part.name):<{name_width}} {bytes_in_words(part.bytes):>9}"
            )
            formula = Content.styled(printable(part.formula), "$muted")
            beside = line.cell_length + 2 + formula.cell_length <= width
            lines += [Content.assemble(line, "  ", formula)] if beside else [line, Content.assemble("  ", formula)]
    return Content("\n").join(lines) if lines else Content("nothing to add up")


def _stacked_bar(sizes: Sequence[int], limit: int, width: int) -> Content:
    cells = stacked_cells(sizes, limit, width)
    spans = [
        Content.styled(fill * count, style)
        for count, (fill, style) in zip(cells, map(key_of, range(len(cells))), strict=True)
        if count
    ]
    rest = width - sum(cells)
    if rest:
        spans.append(Content.styled("·" * rest, "$faint"))
    return Content("").join(spans)


class Breakdown(Static):
    """The breakdown of one plan, drawn for the width that there is."""

    def __init__(self, *, id: str) -> None:  # noqa: A002
        super().__init__(id=id, markup=False)
        self._parts: Sequence[Part] = ()
        self._limits: dict[str, int | None] = {}

    def show(self, parts: Sequence[Part], limits: dict[str, int | None]) -> None:
        """Replaces the plan."""
        self._parts, self._limits = parts, limits
        self._draw()

    def on_resize(self) -> None:
        """Draws again for another width."""
        self._draw()

    def _draw(self) -> None:
        if self._parts:
            self.update(breakdown(self._parts, self._limits, max(20, self.content_size.width)))
