"""The list of models of the tier screen, while their plans come in and when they fail."""

from __future__ import annotations

import threading

from textual.widgets import DataTable

from elite_tui.format.figures import parameters_in_words
from elite_tui.screens.models import ModelsScreen
from elite_tui.wizard.remedies import ModelOutlook
from engine.errors.model import DEVICE_UNAVAILABLE
from engine.models.catalogue import catalogue
from tests.tui.support import FixedEngine, go_to, gpu_machine, make_app, screen_of, settled, text_of, until

SIZE = (120, 36)
SMALL = {"model.name": "qwen2.5-coder-1.5b"}


async def test_the_list_of_models_says_what_each_can_do_and_chooses():
    app = make_app(machine=gpu_machine(), values=SMALL)
    async with app.run_test(size=SIZE) as pilot:
        await go_to(pilot, "tiers")
        await pilot.press("f4")
        await until(pilot, lambda: isinstance(app.screen, ModelsScreen))
        # Planning every model takes seconds, and longer on a busy machine.
        await until(pilot, lambda: app.state.models.value is not None, 120)
        table = app.screen.query_one(DataTable)
        await until(pilot, lambda: table.row_count == len(catalogue()))
        assert str(table.get_cell_at((table.cursor_row, 0))).startswith("●")
        table.move_cursor(row=list(catalogue()).index("qwen2.5-coder-0.5b"))
        await pilot.press("enter")
        await until(pilot, lambda: app.state.draft.get("model.name") == "qwen2.5-coder-0.5b")
        await until(pilot, lambda: app.state.tiers.value.spec.name == "qwen2.5-coder-0.5b")
        await pilot.press("f4")
        await until(pilot, lambda: isinstance(app.screen, ModelsScreen))
        await pilot.press("escape")
        assert screen_of(app) == "tiers"


async def test_the_list_of_models_stands_at_once_and_takes_keys_while_they_are_planned():
    class Slow(FixedEngine):
        def outlooks(self, mapping, machine, tokens, progress):
            first, *others = self.models().values()
            progress(ModelOutlook(spec=first, recommended=None, highest=None))
            assert going_on.wait(60)
            for spec in others:
                progress(ModelOutlook(spec=spec, recommended=None, highest=None))
            return []

    going_on = threading.Event()
    app = make_app(engine=Slow(gpu_machine()), values=SMALL)
    names = list(catalogue())
    async with app.run_test(size=SIZE) as pilot:
        try:
            await go_to(pilot, "tiers")
            await pilot.press("f4")
            await until(pilot, lambda: isinstance(app.screen, ModelsScreen))
            table = app.screen.query_one(DataTable)
            assert [str(key.value) for key in table.rows] == names
            await until(pilot, lambda: "nothing fits" in str(table.get_cell(names[0], "recommended")))
            assert str(table.get_cell(names[1], "recommended")) == "…"
            assert str(table.get_cell(names[1], "parameters")) == parameters_in_words(catalogue()[names[1]].parameters)
            assert f"1 of {len(names)}" in text_of(app, "#about")
            await until(pilot, lambda: table.cursor_row == names.index("qwen2.5-coder-1.5b"))
            table.move_cursor(row=0)
            await pilot.press("down")
            await until(pilot, lambda: table.cursor_row == 1)
            going_on.set()
            await until(pilot, lambda: "nothing fits" in str(table.get_cell(names[-1], "recommended")))
            assert table.cursor_row == 1, "the figures leave the cursor where it is"
            await pilot.press("enter")
            await until(pilot, lambda: app.state.draft.get("model.name") == names[1])
        finally:
            going_on.set()


async def test_the_list_of_models_is_whole_after_a_request_that_failed():
    class FailsOnce(FixedEngine):
        asked = 0

        def outlooks(self, mapping, machine, tokens, progress):
            self.asked += 1
            if self.asked == 1:
                raise DEVICE_UNAVAILABLE(device="cuda", problem="nothing to plan for", remedy="another")
            for spec in self.models().values():
                progress(ModelOutlook(spec=spec, recommended=None, highest=None))
            return []

    app = make_app(engine=FailsOnce(gpu_machine()), values=SMALL)
    async with app.run_test(size=SIZE) as pilot:
        await go_to(pilot, "tiers")
        await pilot.press("f4")
        await until(pilot, lambda: isinstance(app.screen, ModelsScreen) and "✗" in text_of(app, "#about"))
        await pilot.press("escape", "f4")
        await until(pilot, lambda: isinstance(app.screen, ModelsScreen) and not app.state.models.loading)
        await settled(pilot)
        table = app.screen.query_one(DataTable)
        assert table.row_count == len(catalogue())
        assert "✗" not in text_of(app, "#about")


async def test_the_list_of_models_says_what_keeps_it_from_being_planned():
    app = make_app(engine=FixedEngine(gpu_machine()), values=SMALL)
    async with app.run_test(size=SIZE) as pilot:
        await go_to(pilot, "tiers")
        app.drafting.edit("checkpoint.keep", "-3")
        await settled(pilot)
        await pilot.press("f4")
        await until(pilot, lambda: isinstance(app.screen, ModelsScreen))
        assert "correct what is wrong" in text_of(app, "#about")


async def test_the_list_of_models_says_why_the_plan_failed():
    """Once, it said over a plan that had failed that there was none yet."""

    class Fails(FixedEngine):
        def plan_tiers(self, machine, mapping, tokens):
            raise DEVICE_UNAVAILABLE(device="cuda", problem="nothing to plan for", remedy="another")

    app = make_app(engine=Fails(gpu_machine()), values=SMALL)
    async with app.run_test(size=SIZE) as pilot:
        await go_to(pilot, "tiers")
        await until(pilot, lambda: app.state.tiers.error is not None)
        app.screen.action_models()
        await until(pilot, lambda: isinstance(app.screen, ModelsScreen))
        assert "nothing to plan for" in text_of(app, "#about")
        assert "not planned yet" not in text_of(app, "#about")


async def test_the_list_of_models_is_filled_when_the_plan_comes_after_it():
    class Slow(FixedEngine):
        def plan_tiers(self, machine, mapping, tokens):
            assert going_on.wait(60)
            return super().plan_tiers(machine, mapping, tokens)

        def outlooks(self, mapping, machine, tokens, progress):
            for spec in self.models().values():
                progress(ModelOutlook(spec=spec, recommended=None, highest=None))
            return []

    going_on = threading.Event()
    app = make_app(engine=Slow(gpu_machine()), values=SMALL)
    async with app.run_test(size=SIZE) as pilot:
        try:
            await until(pilot, lambda: app.state.tiers.loading)
            app.go("tiers")
            await until(pilot, lambda: screen_of(app) == "tiers" and app.screen.is_mounted)
            app.screen.action_models()
            await until(pilot, lambda: isinstance(app.screen, ModelsScreen) and app.screen.is_mounted)
            assert "planning" in text_of(app, "#about")
            going_on.set()
            table = app.screen.query_one(DataTable)
            await until(pilot, lambda: table.row_count == len(catalogue()))
            await until(pilot, lambda: "predicted, not measured" in text_of(app, "#about"))
        finally:
            going_on.set()
