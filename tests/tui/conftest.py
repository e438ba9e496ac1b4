"""Gives every test a state folder of its own and the same time zone."""

from __future__ import annotations

import time

import pytest

from engine.runs.run_index import STATE_VARIABLE
from tests.tui.support import settled, still


@pytest.fixture(autouse=True)
def ground(tmp_path, monkeypatch):
    """Sets state folder, time zone and colours."""
    monkeypatch.setenv(STATE_VARIABLE, str(tmp_path / "state"))
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.delenv("NO_COLOR", raising=False)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def look(snap_compare):
    """Compares an app's screen with its snapshot, once all requests are answered."""

    def compare(app, size, *, screen_name=None, then=None):
        async def before(pilot):
            await settled(pilot)
            if screen_name is not None:
                app.go(screen_name)
                await pilot.pause()
            if then is not None:
                await then(pilot)
            await settled(pilot)
            await still(pilot)

        return snap_compare(app, terminal_size=size, run_before=before)

    return compare
