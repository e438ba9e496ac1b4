"""The tier screen: what-if machines, probes, and remedies for a tier that does not fit."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from textual.widgets import DataTable, Input

from elite_tui.format.tiers import verdict
from elite_tui.widgets.breakdown import Limit, bars, stacked_cells, sums
from elite_tui.wizard.draft import FILE_NAME, Draft
from elite_tui.wizard.remedies import ways_to_fit, with_ram
from elite_tui.wizard.what_if import WhatIf
from engine import config
from engine.errors import EliteError
from engine.errors.planning import MEASURING_FAILED
from engine.hardware.machine import GIB
from engine.models.catalogue import catalogue
from engine.plan.choice import request_of_run
from engine.plan.memory import Part
from engine.plan.planner import plan_context, tier_table
from tests.tui.support import FixedEngine, cpu_machine, go_to, gpu_machine, make_app, screen_of, settled, text_of, until

SIZE = (120, 36)
SMALL = {"model.name": "qwen2.5-coder-1.5b"}
LARGE = {"model.name": "qwen2.5-coder-14b"}


async def test_another_card_is_planned_for_and_never_used(tmp_path):
    app = make_app(machine=cpu_machine(), values=SMALL, draft_path=tmp_path / FILE_NAME)
    async with app.run_test(size=SIZE) as pilot:
        await go_to(pilot, "tiers")
        here = app.state.tiers.value.table.recommended
        assert "CPU with 8 cores" in text_of(app, "#choice")
        await pilot.press("w", *"rtx-4090", "tab", "tab", *"128")
        await until(pilot, lambda: app.state.what_if.value is not None)
        await until(pilot, lambda: "RTX 4090 24.0 GiB, 128 GiB RAM" in text_of(app, "#choice"))
        there = app.state.what_if.value.table.recommended
        assert there > (here or 0)
        assert app.state.tiers.value.table.recommended == here
        assert not app.state.draft.mapping().get("training")
        # Chosen there, but it does not fit here, so the run keeps its tier.
        await pilot.press("enter")
        app.screen.query_one(DataTable).move_cursor(row=10)
        await pilot.press("enter")
        await until(pilot, lambda: len(app._notifications) > 0)
        assert app.state.draft.get("training.tier") is None
        await pilot.press("x")
        await until(pilot, lambda: "CPU with 8 cores" in text_of(app, "#choice"))
        assert app.state.shown_plans is app.state.tiers.value
        await pilot.press("w", *"rtx-4090")
        await pilot.press("ctrl+q")
    assert WhatIf.of(Draft.load(tmp_path / FILE_NAME)) == WhatIf(card="rtx-4090")


class Slow(FixedEngine):
    """Plans tiers only once released."""

    def __init__(self, planned):
        super().__init__(gpu_machine())
        self.planned = planned

    def plan_tiers(self, machine, mapping, tokens):
        self.planned.wait(30)
        return super().plan_tiers(machine, mapping, tokens)


async def test_keys_wait_for_the_table_while_its_plans_are_made():
    planned = threading.Event()
    app = make_app(engine=Slow(planned), values=SMALL)
    async with app.run_test(size=SIZE) as pilot:
        await until(pilot, lambda: app.state.tiers.loading)
        app.go("tiers")
        await until(pilot, lambda: screen_of(app) == "tiers" and app.screen.is_mounted)
        table = app.screen.query_one(DataTable)
        await until(pilot, lambda: table.loading)
        await pilot.press("x", "y")
        planned.set()
        await until(pilot, lambda: app.screen.focused is table)
        await pilot.press("end", "enter")
        await settled(pilot)
        assert app.state.draft.get("model.name") == SMALL["model.name"]


async def test_a_field_keeps_the_keys_when_the_plans_are_there():
    planned = threading.Event()
    app = make_app(engine=Slow(planned), values=SMALL)
    async with app.run_test(size=SIZE) as pilot:
        await until(pilot, lambda: app.state.tiers.loading)
        app.go("tiers")
        await until(pilot, lambda: screen_of(app) == "tiers" and app.screen.is_mounted)
        await pilot.press("w")
        planned.set()
        await settled(pilot)
        assert app.screen.focused is app.screen.query_one("#what-if-card")


async def test_a_wrong_card_or_size_is_said():
    app = make_app(machine=cpu_machine(), values=SMALL)
    async with app.run_test(size=SIZE) as pilot:
        await go_to(pilot, "tiers")
        await pilot.press("w", *"rtx-9999")
        await until(pilot, lambda: "unknown card rtx-9999" in text_of(app, "#choice"))
        app.screen.query_one("#what-if-card", Input).value = ""
        app.screen.query_one("#what-if-vram", Input).value = "24"
        await until(pilot, lambda: "no GPU to have them" in text_of(app, "#choice"))
        app.screen.query_one("#what-if-vram", Input).value = "much"
        await until(pilot, lambda: "much is not a size in GiB" in text_of(app, "#choice"))


async def test_model_and_precision_are_seen_at_once():
    app = make_app(machine=gpu_machine(), values=SMALL)
    async with app.run_test(size=SIZE) as pilot:
        await go_to(pilot, "tiers")
        before = app.state.tiers.value
        app.screen.query_one("#field-model-precision Select").value = "nf4"
        await until(pilot, lambda: app.state.tiers.value is not before and not app.state.tiers.loading)
        assert "nf4" in text_of(app, "#title")
        assert app.state.draft.get("model.precision") == "nf4"


async def test_a_tier_that_does_not_fit_says_what_would():
    app = make_app(machine=gpu_machine(), values=LARGE)
    async with app.run_test(size=SIZE) as pilot:
        await go_to(pilot, "tiers")
        table = app.screen.query_one(DataTable)
        row = next(i for i, plan in enumerate(app.state.tiers.value.table.tiers) if not plan.fits)
        table.move_cursor(row=row)
        await until(pilot, lambda: "GiB of RAM" in text_of(app, "#ways"))
        assert "✗ RAM" in str(table.get_cell_at((row, 2)))


class Probe:
    """A probe with a prepared outcome."""

    def __init__(self, outcome):
        self._outcome = outcome

    def run(self, tell):
        tell("running")
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome

    def stop(self):
        pass


async def test_a_probe_stands_beside_the_prediction():
    app = make_app(machine=gpu_machine(), values=SMALL)
    asked: list[tuple[str, ...]] = []
    found = {
        "context": 8192,
        "gpu_allocated": {"predicted": 5 << 30, "measured": 6 << 30},
        "host": {"predicted": 1 << 30, "measured": None},
        "window_seconds": {"predicted": 10.0, "measured": 12.5},
    }

    def measurement(*arguments):
        asked.append(arguments)
        return Probe(found)

    app.client.engine.measurement = measurement
    async with app.run_test(size=SIZE) as pilot:
        await go_to(pilot, "tiers")
        app.screen.query_one(DataTable).move_cursor(row=1)
        await pilot.press("p")
        await until(pilot, lambda: "6.00 GiB for 5.00 GiB predicted" in text_of(app, "#verdict"))
        assert "12s for 10s predicted" in text_of(app, "#verdict")
        assert asked[0][:5] == ("probe", "--tier", "2", "--model", "qwen2.5-coder-1.5b")
        # Another row has no probe result, and another machine cannot be probed.
        app.screen.query_one(DataTable).move_cursor(row=2)
        await until(pilot, lambda: "probed" not in text_of(app, "#verdict"))
        await pilot.press("w", *"rtx-4090", "enter", "p")
        await settled(pilot)
        assert len(asked) == 1


@pytest.mark.parametrize("supposed", ["", "rtx-4090"])
async def test_a_probe_shows_that_it_runs_and_that_it_was_stopped(supposed):
    class Endless(Probe):
        ended = threading.Event()

        def run(self, tell):
            tell("window 1 of 2")
            self.ended.wait(20)
            raise self._outcome

        def stop(self):
            self.ended.set()

    app = make_app(machine=gpu_machine(), values=SMALL)
    stopped = MEASURING_FAILED(command="probe", problem="it was stopped", remedy="again")
    app.client.engine.measurement = lambda *arguments: Endless(stopped)
    async with app.run_test(size=(80, 24)) as pilot:
        await go_to(pilot, "tiers")
        await pilot.press("p")
        await until(pilot, lambda: "probing" in text_of(app, "#choice"))
        await until(pilot, lambda: "window 1 of 2" in text_of(app, "#choice"))
        if supposed:
            app.drafting.type_what_if("card", supposed)
            await until(pilot, lambda: "what if" in text_of(app, "#choice"))
        await pilot.press("p")
        await until(pilot, lambda: "probing" not in text_of(app, "#choice"))
        assert any("stopped" in note.message for note in app._notifications)


async def test_a_probe_that_fails_says_so():
    app = make_app(machine=gpu_machine(), values=SMALL)
    failure = MEASURING_FAILED(command="probe", problem="out of [/bold] memory", remedy="close what holds it")
    app.client.engine.measurement = lambda *arguments: Probe(failure)
    async with app.run_test(size=SIZE) as pilot:
        await go_to(pilot, "tiers")
        await pilot.press("p")
        await until(pilot, lambda: "out of [/bold] memory; close what holds it" in text_of(app, "#verdict"))


# --- the memory sums ---------------------------------------------------------------------------------------


def machine_with_little_ram():
    return WhatIf(ram="12").apply(gpu_machine())


@pytest.mark.parametrize(
    ("tokens", "epochs", "said"),
    [
        (521_904, None, "58 updates in an epoch; longer windows would leave fewer than 30"),
        (40_000, None, "5 updates in an epoch, and longer windows would leave no more"),
        (40_000, 10.0, "updates in 10 epochs; longer windows would leave fewer than 30"),
        (3_000, None, "the lowest that holds the whole repository"),
        (None, None, "trained on 32K tokens"),
    ],
)
def test_why_a_tier_is_recommended(tokens, epochs, said):
    training = {} if epochs is None else {"epochs": epochs}
    run = config.from_mapping({"model": {"name": "qwen2.5-coder-1.5b"}, "training": training})
    table = tier_table(request_of_run(run, gpu_machine(), catalogue()["qwen2.5-coder-1.5b"], tokens))
    why, *highest = map(str, verdict(table.row(table.recommended), table))
    assert said in why
    higher = table.ceiling != table.recommended
    limit = (
        "limited so that a window takes up to 10h" if tokens is None else "the lowest that holds the whole repository"
    )
    assert highest == ([f"▲ tier {table.ceiling} is {limit}"] if higher else [])
    assert limit in str(verdict(table.row(table.ceiling), table)[0])


def test_every_way_that_is_named_does_make_it_fit():
    run = config.from_mapping({"model": {"name": "qwen3-32b"}})
    models = tuple(catalogue().values())
    spec, machine = catalogue()["qwen3-32b"], machine_with_little_ram()
    found = ways_to_fit(run, machine, spec, models, 500_000, 1_048_576)
    assert not plan_context(request_of_run(run, machine, spec, 500_000), 1_048_576).fits
    ram = next(way for way in found.ways if "of RAM" in way.change)
    gib = int(ram.change.split()[0])
    enough = request_of_run(run, with_ram(machine, gib), spec, 500_000)
    assert plan_context(enough, 1_048_576).step_seconds == ram.step_seconds
    smaller = next(way.change for way in found.ways if way.change in catalogue())
    assert plan_context(request_of_run(run, machine, catalogue()[smaller], 500_000), 1_048_576).fits


def test_what_if_changes_only_what_was_typed():
    machine = gpu_machine()
    assert WhatIf().apply(machine) == machine
    more = WhatIf(vram="24").apply(machine)
    assert more.gpus[0].memory_total == 24 * GIB
    assert more.gpus[0].tensor_flops == machine.gpus[0].tensor_flops
    assert more.ram_total == machine.ram_total
    other = WhatIf(card="rtx 4090", ram="64 GiB").apply(machine)
    assert other.gpus[0].card == "rtx-4090"
    assert other.ram_total == 64 * GIB
    assert other.disk_free == machine.disk_free


@pytest.mark.parametrize("text", ["0", "-3", "nan", "1e9", "x"])
def test_sizes_that_are_none(text):
    with pytest.raises(EliteError, match="is not a size in GiB"):
        WhatIf(ram=text).apply(gpu_machine())


def test_what_the_wizard_keeps_is_apart_from_the_configuration(tmp_path):
    path = tmp_path / FILE_NAME
    draft = Draft(path, {})
    draft.keep("what-if.card", "rtx-4090")
    draft.save()
    again = Draft.load(path)
    assert again.kept("what-if.card") == "rtx-4090"
    assert again.mapping() == {}
    again.keep("what-if.card", "")
    again.save()
    assert Draft.load(path).kept("what-if.card") == ""


sizes = st.lists(st.integers(1, 1 << 44), min_size=1, max_size=12)


@settings(max_examples=30)
@given(sizes, st.integers(1, 1 << 44), st.integers(1, 200))
def test_a_stacked_bar_never_overflows(found, limit, width):
    cells = stacked_cells(found, limit, width)
    assert all(count >= 0 for count in cells)
    assert sum(cells) <= width


@settings(max_examples=30)
@given(sizes, st.integers(1 << 33, 1 << 44), st.integers(30, 200))
def test_bars_and_sums_are_as_wide_as_they_may_be(found, total, width):
    parts = [Part(name=f"part {size}", where="gpu", bytes=size, formula=f"{size} × 1 B") for size in found]
    limits = {"gpu": Limit(total=total, usable=total * 7 // 8)}
    line = bars(parts, limits, max(width, 60))
    assert line.cell_length == max(width, 60)
    assert len(str(sums(parts, limits, width)).splitlines()) >= len(found) + 2
