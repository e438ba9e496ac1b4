"""Snapshots of palette and other themes. `pytest tests/tui/test_snapshots.py --snapshot-update` accepts changes."""

from __future__ import annotations

import pytest
from textual.command import CommandPalette

from elite_tui.themes import LIGHT
from tests.tui.support import gpu_machine, half_way, make_app, until

USUAL = (120, 40)
MODEL = {"model.name": "qwen2.5-coder-1.5b"}


def test_palette(look):
    async def ask(pilot):
        await pilot.press("ctrl+p")
        await until(pilot, lambda: isinstance(pilot.app.screen, CommandPalette))

    assert look(make_app(values=MODEL), USUAL, then=ask)


@pytest.mark.parametrize("screen_name", ["tiers", "monitor"])
def test_light_theme(look, screen_name):
    app = make_app(
        "monitor" if screen_name == "monitor" else "project",
        machine=gpu_machine(),
        handle=half_way() if screen_name == "monitor" else None,
        values=MODEL,
    )
    app.theme = LIGHT.name
    assert look(app, USUAL, screen_name=screen_name if screen_name != "monitor" else None)


def test_no_colour(look, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    assert look(make_app("monitor", machine=gpu_machine(), handle=half_way()), USUAL)
