"""Whatever has a key can be clicked: in the help, which lists all of a screen, and beside what it changes."""

from __future__ import annotations

from elite_tui.actions import global_actions, screen_actions
from elite_tui.screens.help import HelpScreen
from tests.tui.support import screen_of, settled, until
from tests.tui.test_finish_line import REPORT
from tests.tui.test_run_snapshots import GpuReplay, monitor, result_of

SIZE = (80, 24)


async def click_in_help(pilot, name):
    app = pilot.app
    await pilot.press("f1")
    await until(pilot, lambda: isinstance(app.screen, HelpScreen))
    row = app.screen.query_one(f"#help-{name}")
    row.scroll_visible(animate=False, immediate=True)
    await pilot.pause()
    await pilot.click(f"#help-{name}")
    await until(pilot, lambda: not isinstance(app.screen, HelpScreen))
    await pilot.pause()


def record(node, names, called):
    for name in names:
        setattr(node, f"action_{name}", lambda name=name: called.append(name))


async def test_every_action_of_the_result_and_every_global_one_is_clicked_in_the_help():
    app, enter = result_of(REPORT)
    called: list[str] = []
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        await enter(pilot)
        # A completed run is not resumed.
        names = [action.name for action in screen_actions("result") if action.name != "resume"]
        everywhere = [action.name for action in global_actions() if action.name not in ("help", "command_palette")]
        record(app.screen, names, called)
        record(app, everywhere, called)
        for name in (*names, *everywhere):
            await click_in_help(pilot, name)
        assert called == [*names, *everywhere]


async def test_actions_of_the_monitor_are_clicked_in_the_help():
    app = monitor(GpuReplay())
    called: list[str] = []
    names = ["pause", "stop", "show_gpu", "toggle_grid"]
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        record(app.screen, names, called)
        for name in names:
            await click_in_help(pilot, name)
        assert called == names


async def test_a_run_that_has_ended_leads_to_its_result_by_a_click():
    app = monitor(GpuReplay(ended=True))
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        await until(pilot, lambda: app.state.run.ended)
        await until(pilot, lambda: "click here" in app.screen.query_one("#progress").plain)
        await pilot.click("#progress", offset=(5, 1))
        await until(pilot, lambda: screen_of(app) == "result")


async def test_a_click_beside_the_rows_of_the_help_does_nothing():
    app = monitor(GpuReplay())
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        await pilot.press("f1")
        await until(pilot, lambda: isinstance(app.screen, HelpScreen))
        await pilot.click(offset=(0, 0))
        assert isinstance(app.screen, HelpScreen)
        await pilot.press("escape")
        await until(pilot, lambda: screen_of(app) == "monitor")
