"""Keys before anything is there, dialogs over dialogs, and screens that are left before they are mounted."""

from __future__ import annotations

import asyncio

import pytest
from textual.command import Hit, Provider
from textual.widgets import DataTable, Input

from elite_tui.screen_list import SCREENS
from elite_tui.screens.confirm import QuitScreen
from elite_tui.screens.help import HelpScreen
from elite_tui.screens.palette import Palette
from engine.errors.model import DEVICE_UNAVAILABLE
from tests.tui.support import FixedEngine, gpu_machine, make_app, screen_of, settled, until
from tests.tui.test_keys import SMALL, Watched
from tests.tui.test_random_walks import press_at_once

SIZE = (80, 24)


def screens_below(app):
    return [screen for screen in app.screen_stack if hasattr(screen, "ROOM")]


async def test_page_keys_in_a_palette_that_has_found_nothing_yet():
    app = make_app(engine=Watched(), values=SMALL)
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        press_at_once(app, "ctrl+p", "pageup", "pagedown", "home", "end", "down", "pageup")
        await until(pilot, lambda: type(app.screen) is Palette)
        await pilot.press(*"zqx", "pageup", "pagedown", "escape")
        await until(pilot, lambda: screen_of(app) == "project")


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "after a look"])
async def test_the_palette_leads_to_every_screen(at_once):
    app = make_app("monitor", engine=Watched(ended=True), values=SMALL)
    async with app.run_test(size=(60, 20)) as pilot:
        await settled(pilot)
        for entry in (*(SCREENS[name] for name in SCREENS if name != "monitor"), SCREENS["monitor"]):
            if entry.name == "compare":
                continue  # which is offered once two runs are compared
            asked = f"go to {entry.title.lower()}"
            keys = ["space" if letter == " " else letter for letter in asked]
            if at_once:
                press_at_once(app, "ctrl+p", *keys, "enter")
            else:
                press_at_once(app, "ctrl+p", *keys[:-1])
                await until(pilot, lambda asked=asked: asked[:-1] in [one.value for one in app.screen.query(Input)])
                await pilot.press(keys[-1])
                await until(
                    pilot, lambda: all(worker.is_finished for worker in app.workers if worker.node is app.screen)
                )
                await pilot.press("enter")
            await until(pilot, lambda entry=entry: app.screen_name == entry.name)
            await until(pilot, lambda entry=entry: getattr(app.screen, "ROOM", "") == entry.name)


async def test_an_enter_in_the_palette_waits_for_what_is_searched_for():
    class Slow(Provider):
        async def search(self, query):
            await asyncio.sleep(0.3)
            yield Hit(1, "the slow one", lambda: chosen.append(query))

    chosen: list[str] = []
    app = make_app(engine=Watched(), values=SMALL)
    app.COMMANDS = {Slow}
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        press_at_once(app, "ctrl+p", *"slow", "enter")
        await until(pilot, lambda: chosen == ["slow"])
        assert screen_of(app) == "project"
        press_at_once(app, "ctrl+p", *"slow", "enter", "escape")
        await until(pilot, lambda: screen_of(app) == "project" and not app.screen_stack[2:])
        await pilot.pause(0.5)
        assert chosen == ["slow"]


async def test_a_click_on_a_table_without_columns():
    class NoPlans(FixedEngine):
        def plan_tiers(self, machine, mapping, tokens):
            raise DEVICE_UNAVAILABLE(device="cuda")

    app = make_app(engine=NoPlans(gpu_machine()), values=SMALL)
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        app.go("tiers")
        await settled(pilot)
        table = app.screen.query_one(DataTable)
        assert not table.columns
        await pilot.click(table, offset=(3, 0))
        await pilot.click(table, offset=(3, 2))
        assert screen_of(app) == "tiers"


async def test_comparing_without_marks_says_how_to_mark():
    app = make_app("runs", engine=Watched(), values=SMALL)
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        await pilot.press("c")
        await until(pilot, lambda: any("mark two runs" in notice.message for notice in app._notifications))
        await pilot.press("space", "c")
        assert screen_of(app) == "runs"


async def test_a_screen_that_changes_closes_its_dialogs():
    app = make_app("monitor", engine=Watched(), values=SMALL)
    async with app.run_test(size=SIZE) as pilot:
        await until(pilot, lambda: app.state.run is not None and app.state.run.updated_at is not None)
        await pilot.press("s", "ctrl+q")  # two questions
        await until(pilot, lambda: type(app.screen) is QuitScreen)
        await pilot.resize_terminal(60, 20)
        app.go("runs")
        await until(pilot, lambda: screen_of(app) == "runs")
        assert len(app.screen_stack) == 2
        await pilot.press("escape")
        await until(pilot, lambda: screen_of(app) == "monitor")


async def test_a_dialog_stays_when_the_palette_is_asked_for():
    app = make_app(engine=Watched(), values=SMALL)
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        await pilot.press("f1")
        await until(pilot, lambda: isinstance(app.screen, HelpScreen))
        await pilot.press("ctrl+p")
        await pilot.resize_terminal(200, 60)
        assert isinstance(app.screen, HelpScreen)
        await pilot.press("escape")
        await until(pilot, lambda: screen_of(app) == "project")


@pytest.mark.parametrize("size", [(60, 20), (120, 36)], ids=lambda size: f"{size[0]}x{size[1]}")
async def test_screens_that_are_left_before_they_are_mounted(size):
    app = make_app(engine=Watched(), values=SMALL)
    async with app.run_test(size=size) as pilot:
        await settled(pilot)
        for _ in range(3):
            for name in ("tiers", "data", "review", "hardware", "options", "runs", "project"):
                app.go(name)
            await pilot.pause()
        await settled(pilot)
        assert screen_of(app) == "project"
        press_at_once(app, *["ctrl+n"] * 5, *["escape"] * 3, "f3", "f3")
        await settled(pilot)
        assert len(screens_below(app)) == 1
