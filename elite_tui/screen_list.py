"""Lists the app's screens by name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ScreenEntry:
    """One screen."""

    name: str
    title: str
    screen: str
    "Class of elite_tui.screens.<name>."
    needs_run: bool = False
    "Whether the screen shows a run and needs an open one."


TRAIL: tuple[ScreenEntry, ...] = (
    ScreenEntry(name="project", title="Project", screen="ProjectScreen"),
    ScreenEntry(name="hardware", title="Hardware", screen="HardwareScreen"),
    ScreenEntry(name="tiers", title="Tier", screen="TiersScreen"),
    ScreenEntry(name="options", title="Options", screen="OptionsScreen"),
    ScreenEntry(name="data", title="Data", screen="DataScreen"),
    ScreenEntry(name="review", title="Review", screen="ReviewScreen"),
    ScreenEntry(name="monitor", title="Train", screen="MonitorScreen", needs_run=True),
    ScreenEntry(name="result", title="Result", screen="ResultScreen", needs_run=True),
)
"""The wizard's screens in their order."""

BESIDE: tuple[ScreenEntry, ...] = (
    ScreenEntry(name="runs", title="Runs", screen="RunsScreen"),
    ScreenEntry(name="generate", title="Try the result", screen="GenerateScreen", needs_run=True),
    ScreenEntry(name="compare", title="Compare runs", screen="CompareScreen"),
)
"""The screens outside the trail."""

SCREENS: dict[str, ScreenEntry] = {entry.name: entry for entry in (*TRAIL, *BESIDE)}


def neighbour(name: str, offset: int) -> str:
    """Returns the screen `offset` steps along the trail, clamped at its ends."""
    names = [entry.name for entry in TRAIL]
    return names[min(len(names) - 1, max(0, names.index(name) + offset))]
