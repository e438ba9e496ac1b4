"""Draws a plan's memory sum as a stacked bar per place and a list of every part with its formula."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from textual.content import Content
from textual.widgets import Static

from elite_tui.format.figures import bytes_in_words, bytes_of_total, percent_in_words, printable

if TYPE_CHECKING:
    from engine.plan.memory import Part

PLACE_TITLES = {"gpu": "GPU", "host": "RAM", "disk": "disk"}
_TITLE_WIDTH = 5
_FIGURES_WIDTH = 24
_SIZE_WIDTH = 9
_SHARE_WIDTH = 5
FORMULA_GAP = 2
MOST = 9.99
"Largest share displayed (999%), since a plan ten times too large needs no exact figure."

FILLS = "█▓▒░▚▞▤▦"
"Fill of each part, so that the bar reads without colour."
STYLES = ("$primary", "$secondary", "$accent", "$success", "$primary-lighten-2", "$secondary-lighten-2", "$warning")


def parts_of(parts: Iterable[Part], place: str) -> list[Part]:
    """Returns the non-empty parts of one place, largest first."""
    return sorted((part for part in parts if part.where == place and part.bytes > 0), key=lambda part: -part.bytes)


def stacked_cells(sizes: Sequence[int], limit: int, width: int) -> list[int]:
    """Returns each part's cells on a bar of `width` cells for `limit` bytes.

    Rounds boundaries, not parts, so the parts never add up to more than their sum; the bar's end cuts off any excess
    over the limit.
    """
    cells, total, drawn = [], 0, 0
    for size in sizes:
        total += size
        edge = min(width, round(total / limit * width)) if limit > 0 else width
        cells.append(edge - drawn)
        drawn = edge
    return cells


def key_of(index: int) -> tuple[str, str]:
    """Returns fill and style of the part at an index in the order of size."""
    return FILLS[index % len(FILLS)], STYLES[index % len(STYLES)]


@dataclass(frozen=True, kw_only=True)
class Limit:
    """Size of one place. None is unknown."""

    total: int | None
    usable: int | None
    "Bytes that a plan may use, after other processes' use and the headroom."


NO_LIMIT = Limit(total=None, usable=None)


def bars(parts: Sequence[Part], limits: Mapping[str, Limit], width: int) -> Content:
    """Draws a line per place that the plan uses: a bar of its parts, scaled to the whole place, and the figures.

    Args:
        parts: The ledger's lines.
        limits: Limits by place.
        width: Cells of a line.
    """
    lines = []
    for place, title in PLACE_TITLES.items():
        sizes = [part.bytes for part in parts_of(parts, place)]
        if not sizes:
            continue
        used, limit = sum(sizes), limits.get(place, NO_LIMIT)
        too_much = limit.usable is not None and used > limit.usable
        figures = bytes_of_total(used, limit.total) if limit.total else bytes_in_words(used)
        share = percent_in_words(min(MOST, used / limit.total)) if limit.total else ""
        line = Content.assemble(
            (f"{title:<{_TITLE_WIDTH}} ", "$muted"),
            _stacked_bar(sizes, limit, max(8, width - _TITLE_WIDTH - 1 - _FIGURES_WIDTH)),
            (f"{figures:>{_FIGURES_WIDTH - 6}}", "bold"),
            (f"{share:>5}" + ("!" if too_much else " "), "$text-error bold" if too_much else "$muted"),
        )
        lines.append(line)
    return Content("\n").join(lines)


def sums(parts: Sequence[Part], limits: Mapping[str, Limit], width: int) -> Content:
    """Formats every part of every place, largest first, as a column of figures and its sum. Arguments as for `bars`."""
    blocks = [
        _sum_of(title, here, limits.get(place, NO_LIMIT), width)
        for place, title in PLACE_TITLES.items()
        if (here := parts_of(parts, place))
    ]
    return Content("\n\n").join(blocks) if blocks else Content("nothing to add up")


def _sum_of(title: str, parts: Sequence[Part], limit: Limit, width: int) -> Content:
    total = sum(part.bytes for part in parts)
    name_width = max(len(printable(part.name)) for part in parts)
    indent = 2 + _SIZE_WIDTH + _SHARE_WIDTH + 2
    free = max(20, width - indent)
    lines = []
    for index, part in enumerate(parts):
        fill, style = key_of(index)
        head = Content.assemble(
            (f"{fill} ", style),
            f"{bytes_in_words(part.bytes):>{_SIZE_WIDTH}}",
            (f"{percent_in_words(part.bytes / total):>{_SHARE_WIDTH}}  ", "$muted"),
        )
        name = printable(part.name)
        formula = Content.styled(printable(part.formula), "$muted")
        if indent + name_width + FORMULA_GAP + formula.cell_length <= width:
            lines.append(Content.assemble(head, f"{name:<{name_width}}", " " * FORMULA_GAP, formula))
            continue
        pieces = [*Content(name).wrap(free), *formula.wrap(free)]
        lines += [(head if at == 0 else Content(" " * indent)).append(piece) for at, piece in enumerate(pieces)]
    lines.append(Content.styled("  " + "─" * _SIZE_WIDTH, "$muted"))
    lines.append(
        Content.assemble(f"  {bytes_in_words(total):>{_SIZE_WIDTH}}       ", (title, "bold"), *_rest(total, limit))
    )
    return Content("\n").join(lines)


def _rest(total: int, limit: Limit) -> list[tuple[str, str]]:
    """Formats the space left below the limit, or the excess."""
    if limit.usable is None or limit.total is None:
        return []
    of = f" of {bytes_in_words(limit.usable)} that can be used"
    left = limit.usable - total
    if left < 0:
        return [(of, "$muted"), (f"  ✗ {bytes_in_words(-left)} too much", "$text-error bold")]
    return [(f"{of}: {bytes_in_words(left)} left", "$muted")]


def _stacked_bar(sizes: Sequence[int], limit: Limit, width: int) -> Content:
    """Draws the parts, then unused space as dots, then the headroom and other processes' use as dashes."""
    whole = max(limit.total or 0, sum(sizes))
    cells = stacked_cells(sizes, whole, width)
    spans = [
        Content.styled(fill * count, style)
        for count, (fill, style) in zip(cells, map(key_of, range(len(cells))), strict=True)
        if count
    ]
    drawn = sum(cells)
    edge = width if limit.usable is None or not whole else min(width, round(limit.usable / whole * width))
    spans.append(Content.styled("·" * max(0, edge - drawn), "$faint"))
    spans.append(Content.styled("╌" * (width - max(edge, drawn)), "$faint"))
    return Content("").join(spans)


class Breakdown(Static):
    """Breakdown of one plan as bars or sums, drawn to the available width.

    Args:
        draw: `bars` or `sums`.
        id: The widget's id.
    """

    def __init__(self, draw: Callable[[Sequence[Part], Mapping[str, Limit], int], Content], *, id: str) -> None:  # noqa: A002
        super().__init__(id=id, classes="breakdown", markup=False)
        self._draw_parts = draw
        self._parts: Sequence[Part] = ()
        self._limits: Mapping[str, Limit] = {}

    def show(self, parts: Sequence[Part], limits: Mapping[str, Limit]) -> None:
        """Replaces the plan."""
        self._parts, self._limits = parts, limits
        self._draw()

    def on_resize(self) -> None:
        """Redraws at the new width."""
        self._draw()

    def _draw(self) -> None:
        if self._parts:
            self.update(self._draw_parts(self._parts, self._limits, max(20, self.content_size.width)))
