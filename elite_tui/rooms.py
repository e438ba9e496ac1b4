"""The app's rooms (screens) by name. A room's module is imported when the room is first entered."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from elite_tui.screens.room import RoomScreen


@dataclass(frozen=True, kw_only=True)
class Room:
    """One room."""

    name: str
    title: str
    screen: str
    "Class of elite_tui.screens.<name>."
    needs_run: bool = False
    "Whether the room shows a run, and cannot be entered without one."


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
"""The rooms of the wizard, in the order in which a person walks through them."""

BESIDE: tuple[Room, ...] = (
    Room(name="runs", title="Runs", screen="RunsScreen"),
    Room(name="generate", title="Try the result", screen="GenerateScreen", needs_run=True),
    Room(name="compare", title="Compare runs", screen="CompareScreen"),
)
"""The rooms beside the trail."""

ROOMS: dict[str, Room] = {room.name: room for room in (*TRAIL, *BESIDE)}


def build_room(name: str) -> RoomScreen:
    """A fresh screen; everything it shows comes from the app's state."""
    module = importlib.import_module(f"elite_tui.screens.{name}")
    screen: RoomScreen = getattr(module, ROOMS[name].screen)()
    return screen


def neighbour(name: str, offset: int) -> str:
    """The room so many steps along the trail; the ends stay where they are."""
    names = [room.name for room in TRAIL]
    return names[min(len(names) - 1, max(0, names.index(name) + offset))]
