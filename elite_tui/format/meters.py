"""Formats a machine's live levels, one line per measure, with its history beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from textual.content import Content

from elite_tui.format.figures import (
    NOT_AVAILABLE,
    bytes_in_words,
    bytes_of_total,
    percent_in_words,
    printable,
    share_of,
)
from elite_tui.format.layout import TIGHT, history_line, line_bar

if TYPE_CHECKING:
    from engine.hardware.nvml import GpuSample
    from engine.hardware.telemetry import Snapshot

LABEL_WIDTH = 8
SHARE_WIDTH = 6
FIGURES_WIDTH = 16
SHORTEST_BAR, LONGEST_BAR = 10, 40
SHORTEST_HISTORY = 12
HOTTEST = 100.0
"Degrees Celsius of a full bar."


@dataclass(frozen=True, kw_only=True)
class Level:
    """One measure."""

    label: str
    share: float | None
    figures: str
    history: tuple[float | None, ...]
    "Shares, oldest first."
    owned: float | None = None
    "Share of the bar held by the run on screen; None where that does not apply."
    warning: str = ""


@dataclass(frozen=True, kw_only=True)
class Device:
    """One GPU, or the rest of the machine."""

    title: str
    levels: tuple[Level, ...]
    note: Content
    "Text below the levels; may be empty."


def devices(snapshots: Sequence[Snapshot], own_bytes: int | None) -> list[Device]:
    """Converts snapshots to the newest readings with their history, GPUs first.

    Args:
        snapshots: Oldest first.
        own_bytes: Bytes of the first GPU held by the run on screen; None without one.
    """
    if not snapshots:
        return []
    now = snapshots[-1]
    found = [_gpu(snapshots, place, own_bytes if place == 0 else None) for place in range(len(now.gpus))]
    used = now.disk_total - now.disk_free if now.disk_total is not None and now.disk_free is not None else None
    found.append(
        Device(
            title="CPU, memory and disk",
            levels=(
                _level("CPU", snapshots, lambda s: share_of(s.cpu_percent, 100), ""),
                _level(
                    "RAM",
                    snapshots,
                    lambda s: share_of(s.ram_used, s.ram_total),
                    bytes_of_total(now.ram_used, now.ram_total),
                ),
                _level(
                    "swap",
                    snapshots,
                    lambda s: share_of(s.swap_used, s.swap_total),
                    bytes_of_total(now.swap_used, now.swap_total),
                ),
                Level(
                    label="disk",
                    share=share_of(used, now.disk_total),
                    figures=f"{bytes_in_words(now.disk_free)} free" if now.disk_free is not None else NOT_AVAILABLE,
                    history=(),
                ),
            ),
            note=Content(""),
        )
    )
    return found


def _gpu(snapshots: Sequence[Snapshot], place: int, own_bytes: int | None) -> Device:
    gpu = snapshots[-1].gpus[place]

    def read(take: Callable[[GpuSample], float | None]) -> Callable[[Snapshot], float | None]:
        return lambda s: take(s.gpus[place]) if place < len(s.gpus) else None

    memory = _level(
        "memory",
        snapshots,
        read(lambda g: share_of(g.memory_used, g.memory_total)),
        bytes_of_total(gpu.memory_used, gpu.memory_total),
        owned=share_of(own_bytes, gpu.memory_total),
    )
    power = (
        f"{gpu.power:.0f}/{gpu.power_limit:.0f} W"
        if gpu.power is not None and gpu.power_limit
        else _unit(gpu.power, "W")
    )
    return Device(
        title=f"GPU {gpu.index}  {printable(gpu.name or NOT_AVAILABLE)}",
        levels=(
            memory,
            _level("load", snapshots, read(lambda g: share_of(g.utilisation, 100)), _clock(gpu)),
            _level(
                "power",
                snapshots,
                read(lambda g: share_of(g.power, g.power_limit)),
                power,
                warning="held down by power" if gpu.throttled and "power" in gpu.throttled else "",
            ),
            _level(
                "heat",
                snapshots,
                read(lambda g: share_of(g.temperature, HOTTEST)),
                _unit(gpu.temperature, "°C"),
                warning="held down by heat" if gpu.throttled and "heat" in gpu.throttled else "",
            ),
        ),
        note=_memory_note(gpu, own_bytes),
    )


def _memory_note(gpu: GpuSample, own_bytes: int | None) -> Content:
    """Formats the owners of the memory, with the bar's fills as the key."""
    if gpu.memory_used is None or gpu.memory_total is None:
        return Content("")
    own = min(own_bytes or 0, gpu.memory_used)
    others, free = gpu.memory_used - own, gpu.memory_total - gpu.memory_used
    pieces: list[tuple[str, str]] = []
    if own_bytes is not None:
        pieces += [("█ ", "$primary"), (f"this run {bytes_in_words(own)}   ", "")]
    pieces += [
        ("▒ ", "$secondary"),
        (f"others {bytes_in_words(others)}   ", ""),
        ("· ", "$faint"),
        (f"free {bytes_in_words(free)}", ""),
    ]
    return Content.assemble(*pieces)


def _level(
    label: str,
    snapshots: Sequence[Snapshot],
    read: Callable[[Snapshot], float | None],
    figures: str,
    *,
    owned: float | None = None,
    warning: str = "",
) -> Level:
    history = tuple(read(snapshot) for snapshot in snapshots)
    return Level(label=label, share=history[-1], figures=figures, history=history, owned=owned, warning=warning)


def _unit(value: float | None, unit: str) -> str:
    return f"{value:.0f} {unit}" if value is not None else NOT_AVAILABLE


def _clock(gpu: GpuSample) -> str:
    return f"{gpu.clock:,.0f} MHz" if gpu.clock is not None else ""


def draw(device: Device, width: int) -> Content:
    """Draws a device's title, levels and note. With enough width, each level's history stands beside it."""
    free = width - LABEL_WIDTH - SHARE_WIDTH - FIGURES_WIDTH - 2
    bar_width = max(SHORTEST_BAR, min(LONGEST_BAR, free - SHORTEST_HISTORY - 1 if free > 34 else free))
    history_width = free - bar_width - 1
    shown = history_width if history_width >= SHORTEST_HISTORY else 0
    lines = [Content.styled(device.title, "bold"), *(_line(level, bar_width, shown) for level in device.levels)]
    if device.note:
        lines.append(Content(" " * (LABEL_WIDTH + 1)).append(device.note))
    return Content("\n").join(lines)


def _line(level: Level, bar_width: int, history_width: int) -> Content:
    tight = level.share is not None and level.share >= TIGHT
    share = percent_in_words(level.share) + ("!" if tight else "") if level.share is not None else NOT_AVAILABLE
    line = Content.assemble(
        (f"{level.label:<{LABEL_WIDTH}} ", "$muted"),
        _bar(level, bar_width, tight=tight),
        (f"{share:>{SHARE_WIDTH}}", "$text-error bold" if tight else ""),
        f"{level.figures:>{FIGURES_WIDTH}}",
    )
    if level.warning:
        return line.append(Content.styled(f"  ! {level.warning}", "$text-warning"))
    if history_width and any(share is not None for share in level.history):
        line = line.append(Content.styled(f"  {history_line(level.history, history_width)}", "$secondary"))
    return line


def _bar(level: Level, width: int, *, tight: bool) -> Content:
    """Draws the level as a line, or a GPU's memory as blocks with a fill of its own for this run's share."""
    style = "$error" if tight else "$primary"
    if level.share is None:
        return Content.styled("┄" * width, "$faint")
    if level.label != "memory":
        drawn = line_bar(level.share, width).rstrip()
        return Content.assemble((drawn, style), ("─" * (width - len(drawn)), "$faint"))
    used = min(width, round(level.share * width))
    own = min(used, round((level.owned or 0.0) * width))
    return Content.assemble(("█" * own, style), ("▒" * (used - own), "$secondary"), ("·" * (width - used), "$faint"))
