"""How each screen looks in a meaningful state. `pytest tests/tui/test_snapshots.py --snapshot-update` accepts."""

from __future__ import annotations

import pytest
from textual.command import CommandPalette

from elite_tui.themes import LIGHT
from engine import errors
from tests.tui.support import FixedEngine, cpu_machine, gpu_machine, make_app, until

SMALL, USUAL, LARGE = (80, 24), (120, 40), (200, 60)
MODEL = {"model.name": "qwen2.5-coder-1.5b"}


def name_of(size):
    return f"{size[0]}x{size[1]}"


sizes = pytest.mark.parametrize("size", [SMALL, USUAL], ids=name_of)
all_sizes = pytest.mark.parametrize("size", [SMALL, USUAL, LARGE], ids=name_of)


@all_sizes
def test_project(look, size):
    assert look(make_app(values=MODEL), size)


@sizes
def test_project_refused(look, size):
    engine = FixedEngine(cpu_machine())
    engine.facts = errors.REPOSITORY_MISSING(path="/home/me/[/bold]shop")
    assert look(make_app(engine=engine, values={"model.name": "quen"}), size)


@sizes
def test_hardware(look, size):
    assert look(make_app(machine=gpu_machine(), values=MODEL), size, room="hardware")


@sizes
def test_hardware_without_a_gpu(look, size):
    assert look(make_app(machine=cpu_machine()), size, room="hardware")


@all_sizes
def test_tiers(look, size):
    assert look(make_app(machine=gpu_machine(), values=MODEL), size, room="tiers")


@sizes
def test_tiers_that_do_not_fit(look, size):
    async def last_row(pilot):
        await pilot.press("end", "down")
        await pilot.press(*["down"] * 11)

    values = {"model.name": "qwen2.5-coder-14b"}
    assert look(make_app(machine=cpu_machine(), values=values), size, room="tiers", then=last_row)


@sizes
def test_options_with_problems(look, size):
    values = {"lora.rank": "many", "training.learning_rate": 7, "training.epochs": 3}
    assert look(make_app(values=values), size, room="options")


@sizes
def test_review(look, size):
    async def checked(pilot):
        await until(pilot, lambda: pilot.app.state.preflight.value is not None)

    assert look(make_app(machine=gpu_machine(), values=MODEL), size, room="review", then=checked)


@sizes
def test_review_with_a_problem(look, size):
    engine = FixedEngine(gpu_machine())
    engine.facts = errors.REPOSITORY_MISSING(path="/home/me/shop")
    assert look(make_app(engine=engine, values=MODEL), size, room="review")


def test_palette(look):
    async def ask(pilot):
        await pilot.press("ctrl+p")
        await until(pilot, lambda: isinstance(pilot.app.screen, CommandPalette))

    assert look(make_app(values=MODEL), USUAL, then=ask)


def test_light_theme(look):
    app = make_app(machine=gpu_machine(), values=MODEL)
    app.theme = LIGHT.name
    assert look(app, USUAL, room="tiers")
