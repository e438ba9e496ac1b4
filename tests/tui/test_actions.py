"""One table of actions generates bindings, footer, help and palette."""

from __future__ import annotations

import importlib

import pytest

from elite_tui.actions import ACTIONS, global_actions, screen_actions
from elite_tui.app import EliteApp
from elite_tui.screen_list import SCREENS, TRAIL, neighbour


@pytest.mark.parametrize("screen_name", SCREENS)
def test_every_action_of_a_screen_exists_and_is_bound(screen_name):
    screen = getattr(importlib.import_module(f"elite_tui.screens.{screen_name}"), SCREENS[screen_name].screen)
    bound = {binding.action: binding for binding in screen.BINDINGS}
    assert bound.keys() == {action.name for action in screen_actions(screen_name)}
    for action in screen_actions(screen_name):
        assert callable(getattr(screen, f"action_{action.name}"))


def test_every_action_everywhere_exists():
    for action in global_actions():
        assert callable(getattr(EliteApp, f"action_{action.name}"))


@pytest.mark.parametrize("screen_name", SCREENS)
def test_no_key_does_two_things_in_a_screen(screen_name):
    keys = [key for action in (*screen_actions(screen_name), *global_actions()) for key in action.keys.split(",")]
    assert len(keys) == len(set(keys))


def test_names_are_unique_and_screen_known():
    assert len({action.name for action in ACTIONS}) == len(ACTIONS)
    assert {screen_name for action in ACTIONS for screen_name in action.screens} <= SCREENS.keys()


def test_the_trail_has_ends():
    assert neighbour("project", -1) == "project"
    assert neighbour("project", 1) == "hardware"
    assert neighbour("result", 1) == "result"
    assert [screen_name.name for screen_name in TRAIL][-2:] == ["monitor", "result"]
