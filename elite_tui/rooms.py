"""Lists the app's screens by name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Room:
    """One screen."""

    name: str
    title: str
    screen: str
    "Class of elite_tui.screens.<name>."
    needs_run: bool = False
    "Whether the screen shows a run and needs an open one."


TRAIL: tuple[Room, ...] = (
    Room(name="project", title="Project", screen="ProjectScreen"),
    Room(name="hardware", title="Hardware", screen="HardwareScreen"),
    Room(name="tiers", title="Tier", screen="TiersScreen"),
    Room(name="options", title="Options", screen="OptionsScreen"),
    Room(name="data", title="Data", screen="DataScreen"),
    Room(name="review", title="Review", screen="ReviewScreen"),
    Room(name="monitor", title="Train", screen="MonitorScreen", needs_run=True),
    Room(name="result", title="Result", screen="ResultScreen", needs_run=True),
)
"""The wizard's screens in their order."""

BESIDE: tuple[Room, ...] = (
    Room(name="runs", title="Runs", screen="RunsScreen"),
    Room(name="generate", title="Try the result", screen="GenerateScreen", needs_run=True),
    Room(name="compare", title="Compare runs", screen="CompareScreen"),
)
"""The screens outside the trail."""

ROOMS: dict[str, Room] = {room.name: room for room in (*TRAIL, *BESIDE)}


def neighbour(name: str, offset: int) -> str:
    """Returns the screen `offset` steps along the trail, clamped at its ends."""
    names = [room.name for room in TRAIL]
    return names[min(len(names) - 1, max(0, names.index(name) + offset))]
