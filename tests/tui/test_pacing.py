"""Redraws happen at most four times a second, and never while the terminal has not taken the last."""

from __future__ import annotations

import contextlib
import itertools
import os
import pty
import sys
import time

import pytest
from textual.app import App

from elite_tui import redraw_throttle
from elite_tui.redraw_throttle import RedrawThrottle, terminal_takes_more
from elite_tui.state_part import StatePart
from tests.tui.support import half_way, make_app, settled, until


class Clock:
    """A clock that advances only on request."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        self.timers = []
        monkeypatch.setattr(redraw_throttle.time, "monotonic", lambda: self.now)

    def set_timer(self, delay, callback):
        self.timers.append((self.now + delay, callback))

    def pass_to(self, when):
        while due := [timer for timer in self.timers if timer[0] <= when]:
            timer = min(due, key=lambda timer: timer[0])
            self.timers.remove(timer)
            self.now = timer[0]
            timer[1]()
        self.now = when


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def make_pacer(clock, *, headless=False):
    drawn = []
    app = App()
    type(app).is_headless = property(lambda _: headless)
    return RedrawThrottle(app, lambda what: drawn.append((clock.now, what)), later=clock.set_timer), drawn


@pytest.fixture(autouse=True)
def restore_app():
    original = App.is_headless
    yield
    App.is_headless = original


def test_a_flood_is_four_redraws_a_second(clock, monkeypatch):
    monkeypatch.setattr(redraw_throttle, "terminal_takes_more", lambda: True)
    throttle, drawn = make_pacer(clock)
    for _ in range(1000):
        throttle.ask("run")
        throttle.ask("snapshots")
        clock.pass_to(clock.now + 0.01)
    clock.pass_to(clock.now + 1.0)
    times = sorted({when for when, _ in drawn})
    assert all(later - earlier >= 0.25 - 1e-9 for earlier, later in itertools.pairwise(times))
    assert 38 <= len(times) <= 45
    # The latest request is drawn in the end.
    assert {what for when, what in drawn if when == times[-1]} == {"run", "snapshots"}


def test_a_quiet_run_is_drawn_at_once(clock, monkeypatch):
    monkeypatch.setattr(redraw_throttle, "terminal_takes_more", lambda: True)
    throttle, drawn = make_pacer(clock)
    throttle.ask("run")
    clock.pass_to(clock.now + 5)
    throttle.ask("run")
    assert [when for when, _ in drawn] == [100.0, 105.0]


def test_nothing_is_drawn_into_a_terminal_that_is_behind(clock, monkeypatch):
    takes = [False]
    monkeypatch.setattr(redraw_throttle, "terminal_takes_more", lambda: takes[0])
    throttle, drawn = make_pacer(clock)
    for _ in range(20):
        throttle.ask("run")
        clock.pass_to(clock.now + 0.1)
    assert drawn == []
    assert len(clock.timers) == 1
    takes[0] = True
    clock.pass_to(clock.now + 0.3)
    assert [what for _, what in drawn] == ["run"]


def _filled(slave):
    """Fills the terminal and returns whether it reports so; the kernel moves some bytes on a little later."""
    with contextlib.suppress(BlockingIOError):
        while os.write(slave, b"x" * 4096):
            pass
    return not terminal_takes_more()


def test_the_terminal_is_asked(monkeypatch):
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as stderr:
        monkeypatch.setattr(sys, "__stderr__", stderr)
        assert terminal_takes_more()
        os.set_blocking(slave, False)
        assert any(_filled(slave) for _ in range(1000))
    os.close(master)
    monkeypatch.setattr(sys, "__stderr__", None)
    assert terminal_takes_more()


async def test_the_monitor_draws_what_it_was_told_last():
    handle = half_way()
    app = make_app("monitor", handle=handle)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        for _ in range(50):
            app.tell(StatePart.RUN)
        await until(pilot, lambda: not app._throttle._armed)
        assert app._throttle._owed == {}


async def test_what_is_due_almost_at_once_is_drawn_too():
    """Events arrive as often as redraws may happen, so that one is often due within a microsecond."""
    drawn = []
    app = App()
    async with app.run_test() as pilot:
        throttle = RedrawThrottle(app, drawn.append)
        for number in range(200):
            throttle._drawn_at = time.monotonic() - redraw_throttle.SHORTEST + number * 1e-8
            throttle.ask(str(number))
            await until(pilot, lambda number=number: str(number) in drawn, seconds=5.0)
    assert drawn == [str(number) for number in range(200)]
