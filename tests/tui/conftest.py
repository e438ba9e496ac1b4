"""Gives every test a state folder of its own and the same time zone."""

from __future__ import annotations

import time

import pytest
from textual import _wait, screen

from elite_tui import redraw_throttle
from elite_tui.client import workers
from elite_tui.widgets import option_form
from engine.runs.run_index import STATE_VARIABLE
from tests.tui.support import settled, still


@pytest.fixture(autouse=True, scope="session")
def brisk():
    """Divides what a test sleeps after each key and each pause, which was longer than it computed.

    Textual's test driver takes an app as idle that computes for less than a twentieth of 20 ms, in which a screen is
    redrawn once, every 17 ms. Both are divided by four. The app looks for news of its runs five times as often.
    """
    with pytest.MonkeyPatch.context() as patch:
        for module, name, times in (
            (_wait, "SLEEP_GRANULARITY", 4),
            (_wait, "SLEEP_IDLE", 4),
            (screen, "UPDATE_PERIOD", 4),
            (workers, "POLL_SECONDS", 5),
        ):
            patch.setattr(module, name, getattr(module, name) / times)
        yield


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
def look(snap_compare, monkeypatch):
    """Compares an app's screen with its snapshot, once all requests are answered.

    A run is redrawn, and a form's next rows are mounted, five times as often as for people: a picture shows none of it.
    """
    for module, name in ((redraw_throttle, "SHORTEST"), (option_form, "AHEAD_AFTER")):
        monkeypatch.setattr(module, name, getattr(module, name) / 5)

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
