"""Every dialog can be read in the dark and the light theme, is whole on small terminals, and closes by escape."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.geometry import Region
from textual.widgets import Input, Select

from elite_tui.screens.confirm import ConfirmScreen, QuitScreen, TypedConfirmScreen
from elite_tui.screens.export import ExportScreen
from elite_tui.screens.help import HelpScreen
from elite_tui.screens.models import ModelsScreen
from elite_tui.screens.palette import Palette
from elite_tui.state_part import StatePart
from elite_tui.themes import THEMES
from tests.tui.support import gpu_machine, history_of, make_app, settled, still, until
from tests.tui.test_contrast import too_faint
from tests.tui.test_keys import SMALL, Watched
from tests.tui.test_small_terminals import SIZES, cut


class FewModels(Watched):
    """Plans four models, since all of them take many seconds."""

    def models(self):
        return dict(list(super().models().items())[:4])


def app_on(first: str, *, ended: bool = False):
    app = make_app(first, engine=FewModels(ended=ended), values=SMALL)
    app.state.snapshots.extend(history_of(gpu_machine()))
    app.state.clock = lambda: app.state.run.updated_at if app.state.run is not None else 0.0
    return app


async def pressed(pilot, *keys: str) -> None:
    for key in keys:
        await pilot.press(key)
        await settled(pilot)


async def ask_to_delete(pilot) -> None:
    app = pilot.app
    await until(pilot, lambda: bool(app.state.runs.value))
    # A path as long as a user's own.
    app.state.runs.value = [
        type(run)(**{**vars(run), "path": Path("/home/me/projects/shop/out/runs") / run.id})
        for run in app.state.runs.value
    ]
    app.tell(StatePart.RUNS)
    await pressed(pilot, "down", "delete")


async def agree_to_delete(pilot) -> None:
    await ask_to_delete(pilot)
    entry = pilot.app.screen.query_one(Input)
    await pressed(pilot, *pilot.app.screen._word)
    assert entry.value == pilot.app.screen._word


async def ask_models(pilot) -> None:
    pilot.app.go("tiers")
    await settled(pilot)
    await pressed(pilot, "f4")
    await until(pilot, lambda: not pilot.app.state.models.loading, 60)


async def show_export(pilot) -> None:
    pilot.app.go("result")
    await settled(pilot)
    await pressed(pilot, "x")


async def end_export(pilot) -> None:
    await show_export(pilot)
    path = "/home/me/projects/shop/out/runs/20260104-100000-billing-77ab/exports/gguf"
    words = f"{path} exists already; press again to write into the folder above, or name another"
    pilot.app.screen.post_message(ExportScreen.Said(words, ended=True, exists=True))
    await settled(pilot)


async def open_select(pilot) -> None:
    pilot.app.go("review")
    await settled(pilot)
    select = pilot.app.screen.query_one(Select)
    select.focus()
    await pressed(pilot, "enter", "down")
    assert select.expanded


def go_and_press(screen_name: str, *keys: str):
    async def prepare(pilot):
        pilot.app.go(screen_name)
        await settled(pilot)
        await pressed(pilot, *keys)

    return prepare


DIALOGS = {
    "help of a form": (HelpScreen, lambda: app_on("project"), go_and_press("options", "f1")),
    "help of a run": (HelpScreen, lambda: app_on("monitor"), go_and_press("monitor", "question_mark")),
    "models": (ModelsScreen, lambda: app_on("project"), ask_models),
    "palette": (Palette, lambda: app_on("project"), go_and_press("data", "ctrl+p")),
    "palette searched": (Palette, lambda: app_on("project"), go_and_press("data", "ctrl+p", *"theme")),
    "palette without a find": (Palette, lambda: app_on("project"), go_and_press("data", "ctrl+p", *"zqx")),
    "stop": (ConfirmScreen, lambda: app_on("monitor"), go_and_press("monitor", "s")),
    "stop, other answer": (ConfirmScreen, lambda: app_on("monitor"), go_and_press("monitor", "s", "left")),
    "quit": (QuitScreen, lambda: app_on("monitor"), go_and_press("monitor", "ctrl+q")),
    "quit, over another": (QuitScreen, lambda: app_on("monitor"), go_and_press("monitor", "s", "ctrl+q")),
    "delete": (TypedConfirmScreen, lambda: app_on("runs"), ask_to_delete),
    "delete, agreed": (TypedConfirmScreen, lambda: app_on("runs"), agree_to_delete),
    "export": (ExportScreen, lambda: app_on("monitor", ended=True), show_export),
    "export, where one exists": (ExportScreen, lambda: app_on("monitor", ended=True), end_export),
    "list of a choice": (None, lambda: app_on("project"), open_select),
    "notices": (None, lambda: app_on("project"), go_and_press("options", "2")),
}


def frames_of(screen):
    """Returns what a dialog draws itself: the screen below is dimmed, and takes no keys."""
    return screen.query("#--input, CommandList") if isinstance(screen, Palette) else screen.children


DARK, LIGHT = (theme.name for theme in THEMES[:2])
WAYS = [*((DARK, size) for size in SIZES), (LIGHT, (60, 20)), (LIGHT, (80, 24))]
"Every size, for what is cut; the light theme on the two where dialogs differ."


@pytest.mark.parametrize(("theme", "size"), WAYS, ids=[f"{theme}-{size[0]}x{size[1]}" for theme, size in WAYS])
@pytest.mark.parametrize("name", DIALOGS)
async def test_a_dialog_can_be_read_is_whole_and_closes(name, theme, size):
    kind, make, prepare = DIALOGS[name]
    app = make()
    app.theme = theme
    async with app.run_test(size=size) as pilot:
        await settled(pilot)
        if app.screen_name == "monitor":
            await until(pilot, lambda: app.state.run is not None and app.state.run.updated_at is not None)
        await prepare(pilot)
        await still(pilot)
        screen = app.screen
        assert kind is None or type(screen) is kind
        frames = [part.region for part in frames_of(screen) if part.region]
        assert all(screen.region.contains_region(frame) for frame in frames)

        assert too_faint(screen, Region.from_union(frames)) == []
        assert cut(screen) == []
        if kind is not None:
            depth = len(app.screen_stack)
            await pressed(pilot, "escape")
            await until(pilot, lambda: len(app.screen_stack) < depth)
