"""Every key of every screen and dialog has an effect; the list of keys is taken from the bindings.

A new key is included automatically and fails until it has an effect. A key that needs a certain state has an entry
in PREPARED.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable

import pytest
from textual.binding import Binding
from textual.screen import ModalScreen
from textual.widgets import Input

from elite_tui.actions import global_actions, screen_actions
from elite_tui.app import EliteApp
from elite_tui.runs.report import RunReport
from elite_tui.screen_list import SCREENS
from elite_tui.screens.confirm import ConfirmScreen, QuitScreen, TypedConfirmScreen
from elite_tui.screens.help import HelpScreen
from elite_tui.screens.models import ModelsScreen
from elite_tui.widgets.line_pane import LinePane
from engine.errors.planning import MEASURING_FAILED
from tests.tui.support import FixedEngine, gpu_machine, make_app, settled, until
from tests.tui.test_run_snapshots import GPU_RUN, SAMPLES, GpuReplay, compared, runs_engine

SIZE = (80, 24)
SMALL = {"model.name": "qwen2.5-coder-1.5b"}


class NoMeasurement:
    """A measurement that always fails."""

    def run(self, tell):
        raise MEASURING_FAILED(command="profile", problem="not here", remedy="elsewhere")

    def stop(self):
        pass


class SilentModels:
    """Models that never finish loading."""

    def ask(self, request):
        pass

    def stop(self):
        pass

    def close(self):
        pass


class Watched(FixedEngine):
    """Records its calls; three runs can be opened, measurements fail at once."""

    def __init__(self, *, ended: bool = False) -> None:
        super().__init__(gpu_machine(), GpuReplay(ended=ended))
        self._ended = ended
        self._given = []
        self.summaries = runs_engine().summaries
        self.asked: list[str] = []

    def __getattribute__(self, name):
        if not name.startswith("_") and name in vars(FixedEngine) | vars(FixedEngine.__mro__[1]):
            object.__getattribute__(self, "asked").append(name)
        return super().__getattribute__(name)

    def launch(self, config):
        self._renew()
        return super().launch(config)

    def open_run(self, reference):
        self._renew()
        return super().open_run(reference)

    def _renew(self):
        """Replaces a handle that was followed before, which has no events left."""
        if self.handle in self._given:
            self.handle = GpuReplay(ended=self._ended)
        self._given.append(self.handle)

    def compare(self, paths):
        return compared()

    def read_report(self, path):
        return RunReport(reference=GPU_RUN, samples=SAMPLES * 2, commands=frozenset({"generate"}))

    def measurement(self, *arguments):
        return NoMeasurement()

    def generation(self, *arguments):
        return SilentModels()


def seen(app: EliteApp) -> tuple[object, ...]:
    """Returns all user-visible effects of a key: the screen, the focus, the requests, commands and saved settings."""
    handle = app.client.engine.handle
    lines = app.screen._compositor.render_strips() if app.is_running and app.screen_stack else []
    return (
        app.is_running,
        app.screen_name if app.is_running else "",
        [type(screen) for screen in app.screen_stack] if app.is_running else [],
        id(app.focused) if app.is_running else 0,
        app.theme,
        [(segment.text, segment.style) for line in lines for segment in line],
        len(app.client.engine.asked),
        len(handle.sent),
        app.state.draft.mapping(),
        len(app.state.open_runs),
    )


async def fresh(pilot, screen_name: str) -> None:
    """Enters a screen again, without any dialog over it."""
    app = pilot.app
    while isinstance(app.screen, ModalScreen):
        app.pop_screen()
    app._screen_name = ""
    app.go(screen_name)
    await until(pilot, lambda: app.screen.is_mounted and getattr(app.screen, "ROOM", "") == screen_name)
    await rest(pilot)


async def rest(pilot) -> None:
    """Waits until nothing changes by itself."""
    await settled(pilot)
    former = None
    while (present := seen(pilot.app)) != former:
        former = present
        await pilot.pause(0.02)


def keys(*pressed: str) -> Callable[[object], Awaitable[None]]:
    async def press(pilot):
        for key in pressed:
            await pilot.press(key)
            await rest(pilot)

    return press


async def suppose(pilot) -> None:
    pilot.app.state.draft.keep("what-if.ram", "128")
    pilot.app.controller.ask_what_if()
    await until(pilot, lambda: pilot.app.state.what_if.value is not None)
    pilot.app.screen.refresh_bindings()


async def read_for_ever(pilot) -> None:
    def reading(mapping, progress):
        while True:
            progress(1, 2, "files found")

    pilot.app.client.engine.preview_data = reading
    pilot.app.controller.read_data()
    await until(pilot, lambda: pilot.app.state.reading)
    await pilot.pause(0.1)


async def mistype(pilot) -> None:
    pilot.app.state.draft.set("lora.rank", "many")
    pilot.app.drafting.changed("lora.rank")
    await rest(pilot)


async def two_runs(pilot) -> None:
    app = pilot.app
    app.client.engine.handle = GpuReplay(name=f"{GPU_RUN[:-1]}c", seed=1)
    app.run_desk.open([None])
    await until(pilot, lambda: len(app.state.open_runs) == 2)
    await rest(pilot)


async def ask_models(pilot) -> None:
    pilot.app.state.generation.prompt = "def f("
    pilot.app.generation_desk.write()
    await until(pilot, lambda: pilot.app.state.generation.busy)
    await rest(pilot)


PREPARED = {
    ("generate", "stop_writing"): ask_models,
    ("project", "leave_recent"): keys("f4"),
    ("tiers", "clear_what_if"): suppose,
    ("tiers", "recommend"): keys("up", "enter"),
    ("options", "reset_field"): keys("down", "down", "space"),
    ("options", "preset_defaults"): keys("2"),
    ("options", "preset_fastest"): keys("2"),
    ("options", "next_problem"): mistype,
    ("review", "next_problem"): mistype,
    ("data", "stop_reading"): read_for_ever,
    ("monitor", "resume"): keys("p"),
    ("monitor", "show_loss"): keys("2"),
    ("monitor", "zoom_out"): keys("plus", "plus"),
    ("monitor", "pan_left"): keys("plus", "plus"),
    ("monitor", "pan_right"): keys("plus", "plus", "left", "left"),
    ("monitor", "whole"): keys("plus"),
    ("monitor", "rougher"): keys("right_square_bracket"),
    ("monitor", "end_search"): keys("slash", "s", "enter"),
    ("monitor", "next_run"): two_runs,
    ("monitor", "previous_run"): two_runs,
    ("compare", "zoom_out"): keys("plus", "plus"),
    ("compare", "pan_left"): keys("plus", "plus"),
    ("compare", "pan_right"): keys("plus", "plus", "left", "left"),
    ("compare", "whole"): keys("plus"),
    ("compare", "rougher"): keys("right_square_bracket"),
    ("runs", "compare_runs"): keys("space", "down", "space"),
    ("runs", "end_filter"): keys("slash", "s", "enter"),
    ("runs", "turn_sort"): keys("o"),
}
"Keys to press before a key has an effect."
ENDED = {("monitor", "show_result")}
"Keys that have an effect only after the run has ended."
ENDED_SCREENS = ("result", "generate")
"Screens of a run that has ended."
QUICK = ("hardware", "result", "runs", "compare")
"Screens whose keys take seconds; those of the others, which plan again, are in the slow suite."
EVERYWHERE = ("project", "monitor")
"Screens on which the global keys are tried: one with a form, one without."


def bindings_of(screen_name: str) -> list[tuple[str, str]]:
    actions = (*screen_actions(screen_name), *(global_actions() if screen_name in EVERYWHERE else ()))
    return [(action.name, key) for action in actions for key in action.keys.split(",")]


async def open_screen(pilot, screen_name: str) -> None:
    app = pilot.app
    await settled(pilot)
    if screen_name == "compare":
        await fresh(pilot, "runs")
        await keys("space", "down", "space", "c")(pilot)
        await until(pilot, lambda: app.screen_name == "compare" and app.state.comparison.value is not None)
    await fresh(pilot, screen_name)


def app_for(screen_name: str, *, ended: bool) -> EliteApp:
    engine = Watched(ended=ended)
    if screen_name not in ENDED_SCREENS and screen_name != "monitor":
        return make_app("runs" if screen_name in ("runs", "compare") else "project", engine=engine, values=SMALL)
    app = make_app("monitor", engine=engine, values=SMALL)
    app.state.clock = lambda: app.state.run.updated_at if app.state.run is not None else 0.0
    return app


@pytest.mark.parametrize(
    "screen_name",
    [
        screen_name if screen_name in QUICK else pytest.param(screen_name, marks=pytest.mark.slow)
        for screen_name in SCREENS
    ],
)
async def test_every_key_of_a_screen_does_something(screen_name):
    left = bindings_of(screen_name)
    idle = []
    while left:
        ended = screen_name in ENDED_SCREENS or (screen_name, left[0][0]) in ENDED
        app = app_for(screen_name, ended=ended)
        async with app.run_test(size=SIZE) as pilot:
            await open_screen(pilot, screen_name)
            while (
                left
                and app.is_running
                and ended == (screen_name in ENDED_SCREENS or (screen_name, left[0][0]) in ENDED)
            ):
                action, key = left.pop(0)
                # A field takes letters as text, so each would seem to have an effect.
                elsewhere = getattr(app.screen, "ROOM", "") != screen_name
                if elsewhere or (screen_name, action) in PREPARED or isinstance(app.focused, Input):
                    await fresh(pilot, screen_name)
                if prepare := PREPARED.get((screen_name, action)):
                    await prepare(pilot)
                before = seen(app)
                await pilot.press(key)
                with contextlib.suppress(AssertionError):
                    await until(pilot, lambda before=before, app=app: seen(app) != before, seconds=3.0)
                    continue
                idle.append((action, key))
    assert not idle


QUESTIONS = {
    "help": lambda app: HelpScreen("project"),
    "models": lambda app: ModelsScreen(app.state, app.controller),
    "quit": lambda app: QuitScreen(),
    "confirm": lambda app: ConfirmScreen("Stop?", "…", (("stop", "Stop"), ("no", "Go on")), safe="no"),
    "typed": lambda app: TypedConfirmScreen("Delete?", "…", "a2b", "Delete"),
}


def keys_of(screen: type[ModalScreen]) -> list[str]:
    found = [binding.key if isinstance(binding, Binding) else binding[0] for binding in screen.BINDINGS]
    return [key for keys in found for key in keys.split(",")]


@pytest.mark.parametrize(
    "question", ["confirm", "typed", "quit", *(pytest.param(q, marks=pytest.mark.slow) for q in ("help", "models"))]
)
async def test_every_key_of_a_question_does_something(question):
    app = app_for("project", ended=False)
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        for key in keys_of(type(QUESTIONS[question](app))):
            app.push_screen(QUESTIONS[question](app))
            await until(pilot, lambda: isinstance(app.screen, ModalScreen))
            await rest(pilot)
            before = seen(app)
            await pilot.press(key)
            await until(pilot, lambda before=before: seen(app) != before)
            await fresh(pilot, "project")


async def test_every_key_of_the_log_scrolls():
    app = app_for("monitor", ended=False)
    async with app.run_test(size=(80, 24)) as pilot:
        await open_screen(pilot, "monitor")
        pane = app.screen.query_one(LinePane)
        await until(pilot, lambda: pane.max_scroll_y > 0)
        for key in (binding.key for binding in LinePane.BINDINGS):
            to_the_end = key in ("up", "pageup", "home")
            pane.focus()
            pane.scroll_to(y=pane.max_scroll_y if to_the_end else 0, animate=False)
            await pilot.pause()
            before = pane.scroll_y
            await pilot.press(key)
            await until(pilot, lambda before=before: pane.scroll_y != before)


def test_what_is_prepared_is_bound():
    assert PREPARED.keys() | ENDED <= {
        (screen_name, action.name) for screen_name in SCREENS for action in screen_actions(screen_name)
    }
