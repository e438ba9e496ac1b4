"""One table of actions generates bindings, footer, help and palette."""

from __future__ import annotations

import importlib

import pytest

from elite_tui.actions import ACTIONS, global_actions, room_actions
from elite_tui.app import EliteApp
from elite_tui.rooms import ROOMS, TRAIL, neighbour


@pytest.mark.parametrize("room", ROOMS)
def test_every_action_of_a_room_exists_and_is_bound(room):
    screen = getattr(importlib.import_module(f"elite_tui.screens.{room}"), ROOMS[room].screen)
    bound = {binding.action: binding for binding in screen.BINDINGS}
    assert bound.keys() == {action.name for action in room_actions(room)}
    for action in room_actions(room):
        assert callable(getattr(screen, f"action_{action.name}"))


def test_every_action_everywhere_exists():
    for action in global_actions():
        assert callable(getattr(EliteApp, f"action_{action.name}"))


@pytest.mark.parametrize("room", ROOMS)
def test_no_key_does_two_things_in_a_room(room):
    keys = [key for action in (*room_actions(room), *global_actions()) for key in action.keys.split(",")]
    assert len(keys) == len(set(keys))


def test_names_are_unique_and_rooms_known():
    assert len({action.name for action in ACTIONS}) == len(ACTIONS)
    assert {room for action in ACTIONS for room in action.rooms} <= ROOMS.keys()


def test_the_trail_has_ends():
    assert neighbour("project", -1) == "project"
    assert neighbour("project", 1) == "hardware"
    assert neighbour("result", 1) == "result"
    assert [room.name for room in TRAIL][-2:] == ["monitor", "result"]
