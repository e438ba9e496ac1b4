"""The options screen: switches, conflicts, presets, and the form behind them."""

from __future__ import annotations

import pytest
from textual.widgets import Button, Static

from elite_tui.format.optimizations import EFFECTS_FROM, heading, row_line, signed_bytes, signed_duration
from elite_tui.widgets.field_row import FieldRow
from elite_tui.widgets.optimization_list import OptimizationList
from elite_tui.widgets.option_form import OptionForm
from elite_tui.wizard.plans import with_planned_effects
from elite_tui.wizard.presets import KEEPS, PRESETS, apply
from engine import config
from engine.models.catalogue import catalogue
from engine.plan.choice import choose_plan
from engine.plan.optimization_states import states
from engine.plan.optimizations import is_switched_on, optimizations, toggle
from tests.tui.support import cpu_machine, gpu_machine, make_app, screen_of, settled, until
from tests.tui.test_random_walks import press_at_once

SIZE = (120, 36)
MODEL = {"model.name": "qwen2.5-coder-1.5b"}


def text_of(app, selector):
    return str(app.screen.query_one(selector, Static).content)


def state_of(app, name):
    plans = app.state.tiers.value
    return next(state.state for state in plans.states if state.id == name) if plans is not None else None


async def enter(pilot):
    await settled(pilot)
    pilot.app.go("options")
    await until(pilot, lambda: screen_of(pilot.app) == "options" and pilot.app.screen.is_mounted)
    await until(pilot, lambda: pilot.app.screen.query_one(OptimizationList).option_count > 0)


async def row_of(pilot, path):
    """Brings a field's row into the form, as scrolling to it does."""
    await until(pilot, lambda: bool(pilot.app.screen.query("OptionForm FieldRow")))
    pilot.app.screen.query_one(OptionForm).focus_field(path)
    selector = "#field-" + path.replace(".", "-")
    await until(pilot, lambda: bool(pilot.app.screen.query(selector)))
    return pilot.app.screen.query_one(selector, FieldRow)


async def test_the_form_shows_the_rate_that_an_empty_field_stands_for():
    app = make_app(machine=gpu_machine(), values={"model.name": "llama-3.1-8b", "model.precision": "nf4"})
    async with app.run_test(size=(80, 24)) as pilot:
        await enter(pilot)
        await pilot.press("f4")
        row = await row_of(pilot, "training.learning_rate")
        await until(pilot, lambda: row.control.placeholder == "auto (2.9e-04)")
        alpha = await row_of(pilot, "lora.alpha")
        alpha.set_text("64")
        await until(pilot, lambda: row.control.placeholder == "auto (1.4e-04)")


async def test_rows_are_mounted_as_they_come_near():
    app = make_app(machine=gpu_machine(), values=MODEL)
    async with app.run_test(size=(80, 24)) as pilot:
        await enter(pilot)
        await pilot.press("f4")
        await settled(pilot)
        form = app.screen.query_one(OptionForm)
        before = len(form.query(FieldRow))
        assert 0 < before < 30
        assert form.virtual_size.height > form.size.height
        for _ in range(60):
            await pilot.press("tab")
        await until(pilot, lambda: len(form.query(FieldRow)) >= 60)
        assert app.focused is not None
        assert form in app.focused.ancestors


async def test_a_field_is_reached_while_its_row_is_being_mounted():
    app = make_app(machine=gpu_machine(), values=MODEL)
    async with app.run_test(size=(80, 24)) as pilot:
        await enter(pilot)
        await pilot.press("f4")
        await settled(pilot)
        form = app.screen.query_one(OptionForm)
        before = len(form.query(FieldRow))
        form.mount_all(form._next_rows())
        row = form.query(FieldRow)[before]
        assert not row.query("Input, Select"), "the row is there, and its control is not yet"
        form.focus_field(row.spec.path)
        await until(pilot, lambda: app.focused is not None and row in app.focused.ancestors)


async def test_a_screen_may_be_left_before_it_has_mounted_its_form():
    app = make_app(machine=gpu_machine(), values={**MODEL, "lora.rank": "x"})
    async with app.run_test(size=(60, 20)) as pilot:
        await settled(pilot)
        for _ in range(3):
            app.go("options")
            app.go("data")
            await pilot.pause()
            app.go("options")
            await pilot.pause()
            app.go("review")
        await settled(pilot)
        assert screen_of(app) == "review"


def field_of(app):
    """Returns the path of the field that has the focus."""
    rows = [node for node in app.focused.ancestors if isinstance(node, FieldRow)] if app.focused is not None else []
    return rows[0].spec.path if rows else None


@pytest.mark.parametrize("tabs", [3, 11, 40])
async def test_tabs_faster_than_rows_are_mounted_reach_their_field(tabs):
    app = make_app(machine=gpu_machine(), values=MODEL)
    async with app.run_test(size=(80, 24)) as pilot:
        await enter(pilot)
        press_at_once(app, "f4", *["tab"] * tabs)  # the form is not even there
        await until(pilot, lambda: field_of(app) is not None)
        paths = [spec.path for spec in app.screen.query_one(OptionForm)._specs]
        await until(pilot, lambda: field_of(app) == paths[tabs])
        press_at_once(app, *["tab"] * tabs)
        await until(pilot, lambda: field_of(app) == paths[2 * tabs])
        press_at_once(app, *["shift+tab"] * (tabs + 1))
        await until(pilot, lambda: field_of(app) == paths[tabs - 1])


async def test_tab_leaves_the_form_behind_its_last_field_only():
    app = make_app(machine=gpu_machine(), values=MODEL)
    async with app.run_test(size=(80, 24)) as pilot:
        await enter(pilot)
        await pilot.press("f4")
        await until(pilot, lambda: field_of(app) is not None)
        paths = [spec.path for spec in app.screen.query_one(OptionForm)._specs]
        press_at_once(app, *["tab"] * (len(paths) - 1))
        await until(pilot, lambda: field_of(app) == paths[-1], 60)
        press_at_once(app, "tab")
        await until(pilot, lambda: app.focused is not None and app.focused.id == "back")
        press_at_once(app, "shift+tab")
        await until(pilot, lambda: field_of(app) == paths[-1])


async def test_from_behind_the_form_one_comes_to_its_last_field():
    app = make_app(machine=gpu_machine(), values=MODEL)
    async with app.run_test(size=(80, 24)) as pilot:
        await enter(pilot)
        await pilot.press("f4")
        await until(pilot, lambda: field_of(app) is not None)
        paths = [spec.path for spec in app.screen.query_one(OptionForm)._specs]
        app.screen.query_one("#back", Button).focus()
        await pilot.pause()
        press_at_once(app, "shift+tab", "shift+tab")
        await until(pilot, lambda: field_of(app) == paths[-2], 60)


async def test_what_is_typed_behind_quick_tabs_is_in_its_field():
    app = make_app(machine=gpu_machine(), values=MODEL)
    async with app.run_test(size=(80, 24)) as pilot:
        await enter(pilot)
        await pilot.press("f4")
        await until(pilot, lambda: field_of(app) is not None)
        paths = [spec.path for spec in app.screen.query_one(OptionForm)._specs]
        tabs = paths.index("lora.rank")
        press_at_once(app, *["tab"] * tabs, *"48", *["tab"] * 3)
        await until(pilot, lambda: app.state.draft.get("lora.rank") == 48)
        await until(pilot, lambda: field_of(app) == paths[tabs + 3])


async def test_digits_after_the_form_was_asked_for_apply_no_preset():
    app = make_app(machine=gpu_machine(), values=MODEL)
    async with app.run_test(size=SIZE) as pilot:
        await enter(pilot)
        before = app.state.draft.mapping()
        await pilot.press("f4", "2", "1")
        await settled(pilot)
        assert app.state.draft.mapping().get("training") == before.get("training")
        assert not app._notifications


async def test_a_choice_that_may_be_left_to_the_plan_says_so():
    app = make_app(machine=gpu_machine(), values={**MODEL, "training.tier": 5})
    async with app.run_test(size=SIZE) as pilot:
        await enter(pilot)
        await pilot.press("f4")
        row = await row_of(pilot, "stream.hidden_home")
        assert row.control.value == ""
        for text, value in (("disk", "disk"), ("", None)):
            row.set_text(text)
            await until(pilot, lambda value=value: app.state.draft.get("stream.hidden_home") == value)


def go_to(app, name):
    listed = app.screen.query_one(OptimizationList)
    listed.highlighted = listed.get_option_index(name)


async def test_every_optimisation_has_a_row_and_its_details():
    app = make_app(machine=gpu_machine(), values=MODEL)
    async with app.run_test(size=SIZE) as pilot:
        await enter(pilot)
        listed = app.screen.query_one(OptimizationList)
        assert listed.option_count == len(optimizations()) + 3
        for row in optimizations():
            go_to(app, row.id)
            await until(pilot, lambda row=row: row.id in text_of(app, "#detail"))
            detail = " ".join(text_of(app, "#detail").split())
            assert row.sentence in detail
            assert all(arxiv in detail for arxiv in row.papers)
            assert all(row.conflict_reasons[other].split()[0] in detail for other in row.conflicts)


async def test_a_switch_is_seen_in_the_draft_and_in_the_plan():
    app = make_app(machine=gpu_machine(), values={**MODEL, "training.tier": 5})
    async with app.run_test(size=SIZE) as pilot:
        await enter(pilot)
        go_to(app, "ema")
        assert state_of(app, "ema") == "off"
        await pilot.press("space")
        await until(pilot, lambda: state_of(app, "ema") == "on")
        assert app.state.draft.get("training.ema_decay") == 0.99
        await until(pilot, lambda: "● on" in text_of(app, "#detail"))
        await pilot.press("enter")
        await until(pilot, lambda: state_of(app, "ema") == "off")
        assert app.state.draft.is_default("training.ema_decay")
        go_to(app, "streamed_backprop")
        before = app.state.tiers.value.choice.plan
        on = state_of(app, "streamed_backprop") == "on"
        await pilot.press("space")
        await until(pilot, lambda: state_of(app, "streamed_backprop") == ("off" if on else "on"))
        after = app.state.tiers.value.choice.plan if app.state.tiers.value.choice else None
        assert after is None or after.gpu_peak_bytes != before.gpu_peak_bytes
        await pilot.press("f6")
        await until(pilot, lambda: app.state.draft.is_default("training.step"))


async def test_what_cannot_be_switched_says_why():
    app = make_app(machine=gpu_machine(), values=MODEL)
    async with app.run_test(size=SIZE) as pilot:
        await enter(pilot)
        go_to(app, "ring_attention")
        await pilot.press("space")
        await until(pilot, lambda: len(app._notifications) == 1)
        assert "a GPU each" in next(iter(app._notifications)).message
        go_to(app, "flash_attention")
        await pilot.press("space")
        await until(pilot, lambda: len(app._notifications) == 2)
        assert "it has no switch" in [note.message for note in app._notifications][1]
        assert app.state.draft.mapping() == {
            "data": {"repositories": ["/home/me/shop"]},
            "model": {"name": "qwen2.5-coder-1.5b"},
        }


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
async def test_presets_by_key_and_button(preset):
    app = make_app(machine=cpu_machine(), values={**MODEL, "training.ema_decay": 0.9, "training.neftune_alpha": 5.0})
    async with app.run_test(size=SIZE) as pilot:
        await enter(pilot)
        await pilot.press(str(PRESETS.index(preset) + 1))
        await until(pilot, lambda: len(app._notifications) == 1)
        await settled(pilot)
        by_key = app.state.draft.mapping()
        app.screen.query_one(f"#preset-{preset.name}", Button).press()
        await until(pilot, lambda: len(app._notifications) == 2)
        assert app.state.draft.mapping() == by_key
        assert not app.state.draft.problems()


async def test_form_and_switches_show_the_same_and_the_view_is_kept(tmp_path):
    app = make_app(machine=gpu_machine(), values=MODEL, draft_path=tmp_path / "wizard.json")
    async with app.run_test(size=SIZE) as pilot:
        await enter(pilot)
        go_to(app, "rslora")
        await pilot.press("space", "f4")
        row = await row_of(pilot, "lora.rslora")
        assert row.control.value == "true"
        row.control.value = "false"
        await until(pilot, lambda: state_of(app, "rslora") == "off")
        app.go("review")
        await until(pilot, lambda: screen_of(app) == "review")
        app.go("options")
        await until(pilot, lambda: bool(app.screen.query(FieldRow)))
        await pilot.press("f4")
        await until(pilot, lambda: isinstance(app.focused, OptimizationList))
    assert "options.view" not in (tmp_path / "wizard.json").read_text()


async def test_a_field_with_a_problem_opens_the_form():
    app = make_app(machine=gpu_machine(), values={**MODEL, "lora.rank": "many"})
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        app.go("options")
        await until(pilot, lambda: app.focused is not None and screen_of(app) == "options")
        await until(pilot, lambda: bool(app.screen.query("FieldRow.-wrong")))
        assert "✗ 1 problem to fix" in text_of(app, "#verdict")


# --- presets and formats, without the app ------------------------------------------------------------------


@pytest.mark.parametrize("machine", [gpu_machine(), cpu_machine()], ids=["gpu", "cpu"])
def test_the_exact_preset_leaves_nothing_approximate_on(machine):
    run = config.from_mapping({"model": {"name": "qwen2.5-coder-1.5b"}})
    for row in optimizations():
        if not row.exact and row.switch_on and row.id not in KEEPS:
            try:
                run = toggle(run, row.id, on=True)
            except Exception:
                continue
    spec = catalogue()["qwen2.5-coder-1.5b"]
    choice = choose_plan(config.from_mapping({"model": {"name": "qwen2.5-coder-1.5b"}}), machine, spec, 500_000)
    found = {state.id: state for state in states(run, machine, spec, choice)}
    exact = next(preset for preset in PRESETS if preset.name == "exact")
    after = apply(exact, run, machine, found).config
    on = [row.id for row in optimizations() if not row.exact and is_switched_on(after, row)]
    assert set(on) <= set(KEEPS)
    assert after.model.precision == ("bf16" if machine.gpus else "fp32")


def test_lines_are_as_wide_as_the_list():
    spec = catalogue()["qwen2.5-coder-1.5b"]
    run = config.from_mapping({"model": {"name": spec.name}})
    choice = choose_plan(run, gpu_machine(), spec, 500_000)
    found = states(run, gpu_machine(), spec, choice)
    for width in (EFFECTS_FROM, 80, 120):
        assert heading("extreme", found, width).cell_length == width
        for row, state in zip(optimizations(), found, strict=True):
            assert row_line(row, state, width).cell_length == width


def test_the_switches_that_change_a_whole_plan_say_what_they_are_worth():
    spec = catalogue()["qwen2.5-coder-1.5b"]
    run = config.from_mapping({"model": {"name": spec.name}, "training": {"tier": 6}})
    machine = gpu_machine()
    choice = choose_plan(run, machine, spec, 500_000)
    found = {
        state.id: state
        for state in with_planned_effects(states(run, machine, spec, choice), run, machine, spec, choice)
    }
    assert found["streamed_backprop"].gpu_bytes < -(1 << 30)
    assert found["qlora"].gpu_bytes < 0
    assert found["ema"] == next(state for state in states(run, machine, spec, choice) if state.id == "ema")
    assert with_planned_effects(states(run, machine, spec, None), run, machine, spec, None) == states(
        run, machine, spec, None
    )


def test_changes_in_words():
    assert signed_bytes(None) == signed_bytes(0) == signed_duration(None) == ""
    assert signed_bytes(-(3 << 30)) == "−3.00 GiB"
    assert signed_duration(75) == "+1m 15s"
