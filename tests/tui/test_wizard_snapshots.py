"""Snapshots of the wizard's screens in meaningful states. `pytest ... --snapshot-update` accepts changes."""

from __future__ import annotations

import threading
from typing import NoReturn

import pytest
from textual.widgets import Input

from elite_tui.screens.models import ModelsScreen
from engine.errors.data import REPOSITORY_MISSING
from tests.tui.support import (
    FixedEngine,
    cpu_machine,
    gpu_machine,
    history_of,
    make_app,
    screen_of,
    settled,
    still,
    until,
)

SIZES = ((80, 24), (120, 36), (200, 60))
MODEL = {"model.name": "qwen2.5-coder-1.5b"}


def name_of(size):
    return f"{size[0]}x{size[1]}"


TINY = (60, 20)
"The smallest terminal; its layout differs in the usual states alone."
all_sizes = pytest.mark.parametrize("size", [TINY, *SIZES], ids=name_of)
large_is_slow = pytest.mark.parametrize(
    "size", [*SIZES[:2], pytest.param(SIZES[2], marks=pytest.mark.slow)], ids=name_of
)
"""For states in which the large layout shows nothing different."""


@all_sizes
def test_project(look, size):
    assert look(make_app(values=MODEL), size)


@large_is_slow
def test_project_refused(look, size):
    engine = FixedEngine(cpu_machine())
    engine.facts = REPOSITORY_MISSING(path="/home/me/[/bold]shop")
    assert look(make_app(engine=engine, values={"model.name": "quen"}), size)


@all_sizes
def test_hardware(look, size):
    app = make_app(machine=gpu_machine(), values=MODEL)
    app.state.snapshots.extend(history_of(gpu_machine()))
    assert look(app, size, screen_name="hardware")


@large_is_slow
def test_hardware_without_a_gpu(look, size):
    assert look(make_app(machine=cpu_machine()), size, screen_name="hardware")


@all_sizes
def test_tiers(look, size):
    assert look(make_app(machine=gpu_machine(), values=MODEL), size, screen_name="tiers")


@large_is_slow
def test_tiers_that_do_not_fit(look, size):
    app = make_app(machine=gpu_machine(), values={"model.name": "qwen2.5-coder-14b"})

    async def last_row(pilot):
        await settled(pilot)
        await pilot.press("ctrl+end")
        await until(pilot, lambda: app.state.ways.value is not None)

    assert look(app, size, screen_name="tiers", then=last_row)


@large_is_slow
def test_tiers_of_another_machine(look, size):
    app = make_app(machine=cpu_machine(), values={"model.name": "qwen2.5-coder-7b"})
    app.state.draft.keep("what-if.card", "rtx-4090")
    app.state.draft.keep("what-if.ram", "128")
    assert look(app, size, screen_name="tiers")


@large_is_slow
def test_models(look, size):
    app = make_app(machine=gpu_machine(), values=MODEL)

    async def ask(pilot):
        await settled(pilot)
        await pilot.press("f4")
        await until(pilot, lambda: isinstance(app.screen, ModelsScreen))
        # Planning every model takes seconds, and longer on a busy machine.
        await until(pilot, lambda: app.state.models.value is not None, 120)

    assert look(app, size, screen_name="tiers", then=ask)


@large_is_slow
def test_options_with_problems(look, size):
    values = {"lora.rank": "many", "training.learning_rate": 7, "training.epochs": 3}
    app = make_app(values=values)

    async def formed(pilot):
        # The form is mounted after the screen, and focuses its first problem.
        await until(pilot, lambda: bool(app.screen.query("FieldRow.-wrong")))
        wrong = app.screen.query("FieldRow.-wrong").first()
        await until(pilot, lambda: wrong.has_focus_within)
        await still(pilot)
        # The scroll position depends on the notes wrapped before.
        wrong.scroll_visible(animate=False, top=True, force=True)

    assert look(app, size, screen_name="options", then=formed)


@all_sizes
def test_options(look, size):
    async def third_row(pilot):
        await settled(pilot)
        await pilot.press("down", "down", "down")

    assert look(make_app(machine=gpu_machine(), values=MODEL), size, screen_name="options", then=third_row)


@all_sizes
def test_data(look, size):
    app = make_app(machine=gpu_machine(), values=MODEL)

    async def read(pilot):
        await until(pilot, lambda: app.state.data.value is not None)

    assert look(app, size, screen_name="data", then=read)


@large_is_slow
def test_data_refused(look, size):
    engine = FixedEngine(gpu_machine())
    engine.preview_data = lambda mapping, progress: (_ for _ in ()).throw(REPOSITORY_MISSING(path="/home/me/shop"))
    app = make_app(engine=engine, values=MODEL)

    async def refused(pilot):
        await until(pilot, lambda: app.state.data.error is not None)

    assert look(app, size, screen_name="data", then=refused)


@all_sizes
def test_review(look, size):
    app = make_app(machine=gpu_machine(), values=MODEL)

    async def checked(pilot):
        await until(pilot, lambda: app.state.preflight.value is not None)

    assert look(app, size, screen_name="review", then=checked)


@large_is_slow
def test_review_with_a_problem(look, size):
    engine = FixedEngine(gpu_machine())
    engine.facts = REPOSITORY_MISSING(path="/home/me/shop")
    assert look(make_app(engine=engine, values=MODEL), size, screen_name="review")


class Held(FixedEngine):
    """Answers nothing until released."""

    def __init__(self) -> None:
        super().__init__(gpu_machine())
        self.let_go = threading.Event()

    def _hold(self, *_) -> NoReturn:
        self.let_go.wait(60)
        raise REPOSITORY_MISSING(path="/home/me/shop")

    def stop_sampling(self):
        self.let_go.set()  # the app closes

    read_repositories = find_machine = plan_tiers = preview_data = check = list_runs = open_run = examine = _hold


@pytest.mark.parametrize("size", SIZES[:2], ids=name_of)
@pytest.mark.parametrize("screen_name", ["project", "hardware", "tiers", "data", "review", "runs", "monitor"])
def test_waiting_for_the_engine(snap_compare, screen_name, size):
    app = make_app(screen_name, engine=Held(), values=MODEL)

    async def enter(pilot):
        await until(pilot, lambda: app.screen_stack and app.screen.is_mounted)
        if screen_name not in ("project", "runs", "monitor"):
            app.go(screen_name)
            await until(pilot, lambda: screen_of(app) == screen_name and app.screen.is_mounted)
        for field in app.screen.query(Input):
            field.cursor_blink = False
        await still(pilot)

    assert snap_compare(app, terminal_size=size, run_before=enter)
