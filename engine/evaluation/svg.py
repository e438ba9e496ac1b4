"""Charts as SVG text: lines over a number, and bars with intervals by name. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 720, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 44, 48
_INK, _FAINT = "#333333", "#dddddd"
COLOURS = ("#777777", "#0072b2", "#d55e00", "#009e73")
"""Grey, blue, vermilion, green: a palette for colour-blind readers (Okabe and Ito)."""

Scale = Callable[[float], float]
"""Maps a value to its coordinate in the picture."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: str
    width: float = 1.5
    dots: bool = False


@dataclass(frozen=True, kw_only=True)
class Band:
    """An interval at one x value."""

    name: str
    x: float
    low: float
    middle: float
    high: float
    colour: str


@dataclass(frozen=True, kw_only=True)
class Bars:
    """One value per name, with its interval where there is one."""

    name: str
    values: Sequence[float | None]
    intervals: Sequence[tuple[float, float] | None]
    colour: str


def line_chart(title: str, lines: Sequence[Line], *, x_title: str, y_title: str, bands: Sequence[Band] = ()) -> str:
    """Draws curves over a common x axis; values that are not finite are left out."""
    shown = [[(x, y) for x, y in line.points if math.isfinite(x) and math.isfinite(y)] for line in lines]
    xs = [x for points in shown for x, _ in points] + [band.x for band in bands]
    ys = [y for points in shown for _, y in points] + [v for band in bands for v in (band.low, band.high)]
    across, up = _axis(xs, zero=False), _axis(ys, zero=False)
    x_of, y_of = _place(across, _LEFT, WIDTH - _RIGHT), _place(up, HEIGHT - _BOTTOM, _TOP)
    parts = [*_frame(title, y_title, up, y_of)]
    for tick in across:
        anchor = "end" if tick == across[-1] else "middle"
        parts.append(_text(x_of(tick), HEIGHT - _BOTTOM + 18, _figure(tick), anchor))
    parts.append(_text((WIDTH + _LEFT) / 2, HEIGHT - 8, x_title, "middle"))
    for line, points in zip(lines, shown, strict=True):
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in points)
        if len(points) > 1:
            parts.append(f'<polyline points="{path}" fill="none" stroke="{line.colour}" stroke-width="{line.width}"/>')
        if line.dots or len(points) == 1:
            parts += [
                f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="3.5" fill="{line.colour}"/>' for x, y in points
            ]
    for band in bands:
        x = x_of(band.x)
        parts.append(_bar_of_error(x, y_of(band.low), y_of(band.high), band.colour))
        parts.append(f'<circle cx="{x:.1f}" cy="{y_of(band.middle):.1f}" r="3.5" fill="white" stroke="{band.colour}"/>')
    parts += _legend([*((line.name, line.colour) for line in lines), *((band.name, band.colour) for band in bands)])
    return _document(parts, title)


def bar_chart(title: str, names: Sequence[str], groups: Sequence[Bars], *, y_title: str) -> str:
    """Draws groups of bars beside each other, from 0 up, with whiskers for intervals."""
    ends = [end for group in groups for pair in group.intervals if pair for end in pair]
    values = [value for group in groups for value in group.values if value is not None]
    up = _axis([*values, *ends], zero=True)
    y_of = _place(up, HEIGHT - _BOTTOM, _TOP)
    parts = [*_frame(title, y_title, up, y_of)]
    slot = (WIDTH - _LEFT - _RIGHT) / max(1, len(names))
    bar = 0.7 * slot / max(1, len(groups))
    for index, name in enumerate(names):
        left = _LEFT + index * slot + 0.15 * slot
        parts.append(_text(left + 0.35 * slot, HEIGHT - _BOTTOM + 18, name, "middle"))
        for place, group in enumerate(groups):
            value, interval = group.values[index], group.intervals[index]
            if value is None:
                continue
            x, y = left + place * bar, y_of(value)
            parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{0.9 * bar:.1f}" height="{HEIGHT - _BOTTOM - y:.1f}" '
                f'fill="{group.colour}"/>'
            )
            if interval is not None:
                parts.append(_bar_of_error(x + 0.45 * bar, y_of(interval[0]), y_of(interval[1]), _INK))
    parts += _legend([(group.name, group.colour) for group in groups])
    return _document(parts, title)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Returns evenly spaced round numbers that cover an interval, 1, 2 or 5 times a power of ten apart."""
    span = high - low
    if not (math.isfinite(span) and span > 0):
        return [low, low + (abs(low) or 1.0)]
    power = 10.0 ** math.floor(math.log10(span / about))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * about >= span * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _axis(values: Sequence[float], *, zero: bool) -> list[float]:
    if not values:
        return [0.0, 1.0]
    return ticks(min(0.0, *values) if zero else min(values), max(values))


def _place(axis: Sequence[float], start: float, end: float) -> Scale:
    low, high = axis[0], axis[-1]
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _frame(title: str, y_title: str, up: Sequence[float], y_of: Scale) -> Iterator[str]:
    yield f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
    yield _text(_LEFT, 18, title, "start", 'font-weight="bold"')
    yield _text(_LEFT, 36, y_title, "start")
    for tick in up:
        y = y_of(tick)
        yield f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{_FAINT}"/>'
        yield _text(_LEFT - 8, y + 4, _figure(tick), "end")


def _legend(entries: Sequence[tuple[str, str]]) -> list[str]:
    parts, x = [], float(WIDTH - _RIGHT)
    for name, colour in reversed(entries):
        x -= 7.2 * len(name) + 30
        parts.append(f'<rect x="{x:.1f}" y="10" width="12" height="10" fill="{colour}"/>')
        parts.append(_text(x + 18, 19, name, "start"))
    return parts


def _bar_of_error(x: float, low: float, high: float, colour: str) -> str:
    return (
        f'<path d="M{x:.1f} {low:.1f}V{high:.1f}M{x - 4:.1f} {low:.1f}h8M{x - 4:.1f} {high:.1f}h8" '
        f'stroke="{colour}" fill="none"/>'
    )


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    shown = escape("".join(c if c.isprintable() else "?" for c in text))
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{_INK}" {more}>{shown}</text>'


def _figure(value: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= limit:
            return f"{value / limit:g}{unit}"
    return f"{value:g}"


def _document(parts: Sequence[str], title: str) -> str:
    name = escape("".join(c if c.isprintable() else "?" for c in title), {'"': "&quot;"})
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" aria-label="{name}" font-family="system-ui, sans-serif" font-size="13">'
    )
    return "\n".join([head, *parts, "</svg>"]) + "\n"
