"""Every test has a state folder of its own, and the same clock."""

from __future__ import annotations

import time

import pytest

from engine.runtime.run_index import STATE_VARIABLE


@pytest.fixture(autouse=True)
def ground(tmp_path, monkeypatch):
    """State folder, time zone, no animations, colours."""
    monkeypatch.setenv(STATE_VARIABLE, str(tmp_path / "state"))
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.delenv("NO_COLOR", raising=False)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()
