"""Shows live gauges of GPU memory and load, RAM, CPU and disk, each with two minutes of history."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Static

from elite_tui.format.figures import NOT_AVAILABLE, bytes_in_words, bytes_of_total, percent_in_words, share_of
from elite_tui.format.layout import history_line
from elite_tui.widgets.gauge import LABEL_WIDTH, Gauge

if TYPE_CHECKING:
    from textual.app import ComposeResult

    from engine.hardware.nvml import GpuSample
    from engine.hardware.telemetry import Snapshot

COMPACT_FIGURES = 14
FIGURES = 28
"Cells of the figures beside a gauge."


@dataclass(frozen=True)
class Level:
    """Reading of one gauge."""

    label: str
    share: float | None
    figures: str
    history: tuple[float | None, ...] = ()
    "Shares, oldest first."


def levels(snapshots: Sequence[Snapshot]) -> list[Level]:
    """Returns the newest snapshot's readings with their history; GPUs first."""
    if not snapshots:
        return [Level(label, None, NOT_AVAILABLE) for label in ("CPU", "RAM", "disk")]
    now = snapshots[-1]
    found: list[Level] = []

    def add(label: str, read: Callable[[Snapshot], float | None], figures: str) -> None:
        found.append(Level(label, read(now), figures, tuple(read(snapshot) for snapshot in snapshots)))

    for position, gpu in enumerate(now.gpus):
        name = f"GPU{gpu.index}" if len(now.gpus) > 1 else "GPU"
        memory = f"VRAM{gpu.index}" if len(now.gpus) > 1 else "VRAM"
        add(memory, lambda s, p=position: _gpu_memory(s, p), bytes_of_total(gpu.memory_used, gpu.memory_total))  # type: ignore[misc]
        add(name, lambda s, p=position: _gpu_load(s, p), _gpu_details(gpu))  # type: ignore[misc]
    add("CPU", lambda s: share_of(s.cpu_percent, 100), "" if now.cpu_percent is not None else NOT_AVAILABLE)
    add("RAM", lambda s: share_of(s.ram_used, s.ram_total), bytes_of_total(now.ram_used, now.ram_total))
    used = now.disk_total - now.disk_free if now.disk_total is not None and now.disk_free is not None else None
    free = f"{bytes_in_words(now.disk_free)} free" if now.disk_free is not None else NOT_AVAILABLE
    found.append(Level("disk", share_of(used, now.disk_total), free))
    return found


def _gpu_memory(snapshot: Snapshot, position: int) -> float | None:
    if position >= len(snapshot.gpus):
        return None
    gpu = snapshot.gpus[position]
    return share_of(gpu.memory_used, gpu.memory_total)


def _gpu_load(snapshot: Snapshot, position: int) -> float | None:
    return share_of(snapshot.gpus[position].utilisation, 100) if position < len(snapshot.gpus) else None


def _gpu_details(gpu: GpuSample) -> str:
    parts = []
    if gpu.power is not None:
        parts.append(f"{gpu.power:.0f} W")
    if gpu.temperature is not None:
        parts.append(f"{gpu.temperature:.0f} °C")
    if gpu.throttled:
        parts.append(f"! held down by {' and '.join(gpu.throttled)}")
    return ", ".join(parts) or ("" if gpu.utilisation is not None else NOT_AVAILABLE)


class MachineGauges(Vertical):
    """The machine's gauges, rebuilt when the number of devices changes."""

    def __init__(self, *, compact: bool = False) -> None:
        super().__init__()
        self._compact = compact
        self._labels: tuple[str, ...] = ()

    def compose(self) -> ComposeResult:
        """Composes an empty container; the first snapshot determines the gauges."""
        yield Static("waiting for the first reading …", classes="muted", markup=False)

    def show(self, snapshots: Sequence[Snapshot]) -> None:
        """Draws the newest snapshot; they are in chronological order."""
        found = levels(snapshots)
        if not snapshots and self._labels:
            return
        labels = tuple(level.label for level in found)
        if labels != self._labels:
            self._labels = labels
            self.remove_children()
            self.mount(*(widget for level in found for widget in self._widgets(level)))
        self.call_after_refresh(self._draw, found)

    def _widgets(self, level: Level) -> list[Gauge | Static]:
        if self._compact:
            return [Gauge(level.label, figures_width=COMPACT_FIGURES)]
        return [Gauge(level.label, figures_width=FIGURES), Static(classes="history", markup=False)]

    def _draw(self, found: Sequence[Level]) -> None:
        gauges = list(self.query(Gauge))
        if len(gauges) != len(found):
            return
        for gauge, level in zip(gauges, found, strict=True):
            gauge.show(level.share, level.figures)
        for line, level in zip(self.query(".history").results(Static), found, strict=False):
            known = [share for share in level.history if share is not None]
            peak = f"  peak {percent_in_words(max(known))}" if known else ""
            line.update(
                Content.assemble(
                    " " * (LABEL_WIDTH + 1),
                    (history_line(level.history, gauges[0].bar_width), "$secondary"),
                    (peak, "$muted"),
                )
            )
