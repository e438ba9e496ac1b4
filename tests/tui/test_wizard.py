"""Each screen's main flow and every key of the wizard, on fixed data."""

from __future__ import annotations

import pytest
from textual import events
from textual.widgets import Button, DataTable, Input, Static

from elite_tui.screens.help import HelpScreen
from elite_tui.themes import COLOUR_BLIND, DARK, LIGHT
from elite_tui.widgets.field_row import FieldRow
from elite_tui.widgets.line_input import LONGEST
from elite_tui.widgets.option_form import OptionForm
from engine.errors.data import REPOSITORY_MISSING
from engine.errors.runs import OUTPUT_UNWRITABLE
from tests.tui.recording import RUN_ID
from tests.tui.support import FixedEngine, cpu_machine, gpu_machine, half_way, make_app, screen_of, settled, until

SIZE = (100, 32)


def text_of(app, selector):
    return str(app.screen.query_one(selector, Static).content)


async def type_into(pilot, path, text):
    selector = f"#field-{path.replace('.', '-')}"
    for form in pilot.app.screen.query(OptionForm):
        form.focus_field(path)  # its rows come as they are scrolled to
    await until(pilot, lambda: bool(pilot.app.screen.query(selector)))
    control = pilot.app.screen.query_one(selector, FieldRow).control
    control.focus()
    control.value = ""
    await pilot.press(*text)
    await pilot.pause()


async def enter(pilot, screen_name):
    pilot.app.go(screen_name)
    await until(pilot, lambda: screen_of(pilot.app) == screen_name and pilot.app.screen.is_mounted)
    await settled(pilot)


async def test_project_shows_what_the_repository_holds():
    app = make_app()
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        assert app.focused.value == "/home/me/shop"
        facts = text_of(app, "#repository")
        assert "214 files" in facts
        assert "522K tokens (estimate)" in facts
        assert "1,200 vendored" in facts
        await type_into(pilot, "model.name", "qwen2.5-coder-7b")
        await until(pilot, lambda: app.state.draft.get("model.name") == "qwen2.5-coder-7b")
        await until(pilot, lambda: "apache-2.0" in text_of(app, "#field-model-name .note"))


async def test_a_bad_repository_is_said_beside_its_field():
    engine = FixedEngine(cpu_machine())
    engine.facts = REPOSITORY_MISSING(path="/home/me/shop")
    app = make_app(engine=engine)
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        note = text_of(app, "#field-data-repositories .note")
        assert note.startswith("✗ repository /home/me/shop does not exist; check the path")
        assert app.screen.query_one("#field-data-repositories").has_class("-wrong")


async def test_an_unknown_model_is_said_beside_its_field():
    app = make_app(values={"model.name": "qwen2.5-koder-1.5b"})
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        await until(pilot, lambda: app.state.tiers.error is not None)
        assert "did you mean qwen2.5-coder-1.5b" in text_of(app, "#field-model-name .note")


async def test_typing_asks_the_engine_again_and_is_kept(tmp_path):
    path = tmp_path / "wizard.json"
    app = make_app(draft_path=path)
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        app.state.repository.value = None
        await type_into(pilot, "data.repositories", "/srv/other")
        await until(pilot, lambda: app.state.repository.value is not None)
        await type_into(pilot, "output.model_name", "-bad-")
        await until(pilot, lambda: "✗" in text_of(app, "#field-output-model_name .note"))
        await pilot.press("ctrl+q")
    assert "/srv/other" in path.read_text()
    assert "-bad-" in path.read_text()


async def test_forward_and_back_through_the_screen():
    app = make_app()
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        for screen_name in ("hardware", "tiers", "options", "data", "review"):
            await pilot.press("ctrl+n")
            await until(pilot, lambda screen_name=screen_name: screen_of(app) == screen_name)
        await pilot.press("ctrl+n")
        assert screen_of(app) == "review"
        for screen_name in ("data", "options", "tiers", "hardware", "project"):
            await pilot.press("escape")
            await until(pilot, lambda screen_name=screen_name: screen_of(app) == screen_name)


@pytest.mark.parametrize("screen_name", ["hardware", "tiers", "options", "data"])
async def test_the_buttons_do_what_the_keys_do(screen_name):
    app = make_app()
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        await enter(pilot, screen_name)
        here = screen_of(app)
        app.screen.query_one("#forward", Button).press()
        await until(pilot, lambda: screen_of(app) != here)
        app.screen.query_one("#back", Button).press()
        await until(pilot, lambda: screen_of(app) == here)
        assert screen_of(app) == here


async def test_the_trail_can_be_clicked_but_not_past_a_run():
    app = make_app()
    async with app.run_test(size=(120, 32)) as pilot:
        await settled(pilot)
        steps = list(app.screen.query("TrailStep"))
        await pilot.click(steps[3])
        await until(pilot, lambda: screen_of(app) == "options")
        await pilot.click(list(app.screen.query("TrailStep"))[6])
        await pilot.pause()
        assert screen_of(app) == "options"


async def test_tiers_choose_and_go_back_to_the_recommended():
    app = make_app(machine=gpu_machine(), values={"model.name": "qwen2.5-coder-1.5b"})
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        await enter(pilot, "tiers")
        table = app.screen.query_one(DataTable)
        recommended = app.state.tiers.value.table.recommended
        assert table.row_count == 11
        assert table.cursor_row == recommended - 1
        assert "★" in str(table.get_cell_at((recommended - 1, 0)))
        assert "GPU " in text_of(app, "#breakdown")
        assert "parameters × 2 B" in text_of(app, "#breakdown")
        table.move_cursor(row=1)
        await pilot.press("enter")
        await until(pilot, lambda: app.state.draft.get("training.tier") == 2)
        await until(pilot, lambda: "chosen: tier 2, 8K tokens" in text_of(app, "#choice"))
        assert "●" in str(table.get_cell_at((1, 0)))
        await pilot.press("r")
        await until(pilot, lambda: app.state.draft.get("training.tier") is None)
        await until(pilot, lambda: table.cursor_row == recommended - 1)
        await pilot.press("f5")
        await settled(pilot)


async def test_a_tier_that_does_not_fit_says_why():
    app = make_app(machine=cpu_machine(), values={"model.name": "qwen2.5-coder-14b"})
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        await enter(pilot, "tiers")
        table = app.screen.query_one(DataTable)
        table.move_cursor(row=10)
        await until(pilot, lambda: "✗ does not fit" in text_of(app, "#verdict"))
        await pilot.press("enter")
        assert app.state.draft.get("training.tier") is None
        assert "✗" in text_of(app, "#choice")


async def test_options_validate_beside_each_field():
    app = make_app()
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        await enter(pilot, "options")
        await pilot.press("f4")
        await until(pilot, lambda: bool(app.screen.query(FieldRow)))
        assert "✓ all fields are valid" in text_of(app, "#verdict")
        await type_into(pilot, "training.learning_rate", "7")
        await type_into(pilot, "lora.rank", "many")
        await until(pilot, lambda: "✗ 2 problems to fix" in text_of(app, "#verdict"))
        assert "7 is not a number above 0 and at most 1" in text_of(app, "#field-training-learning_rate .note")
        await pilot.press("f8")
        assert app.focused.parent.parent.id == "field-training-learning_rate"
        await pilot.press("f6")
        await until(pilot, lambda: app.state.draft.get("training.learning_rate") is None)
        await until(pilot, lambda: "✗ 1 problem to fix" in text_of(app, "#verdict"))
        await pilot.press("f8", "f6")
        await until(pilot, lambda: "✓" in text_of(app, "#verdict"))


async def test_options_have_a_row_for_every_field_but_the_project_s():
    app = make_app()
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        await enter(pilot, "options")
        await pilot.press("f4")
        await until(pilot, lambda: bool(app.screen.query(FieldRow)))
        form = app.screen.query_one(OptionForm)
        form.focus_field(form._specs[-1].path)
        await until(pilot, lambda: app.screen.query(FieldRow).last().spec.path == form._specs[-1].path)
        shown = {row.spec.path for row in app.screen.query(FieldRow)}
    from engine.config import fields

    assert {spec.path for spec in fields()} - shown == {
        "model.name",
        "data.repositories",
        "output.directory",
        "output.model_name",
    }


async def test_tier_and_context_together_are_a_problem_of_the_form():
    app = make_app(values={"training.tier": 1, "training.context": 512})
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        await enter(pilot, "options")
        assert "both training.tier" in text_of(app, "#field-training-context .note")


async def test_review_starts_the_run():
    handle = half_way()
    app = make_app(machine=cpu_machine(), handle=handle, values={"training.context": 512})
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        await enter(pilot, "review")
        await until(pilot, lambda: app.state.preflight.value is not None)
        await until(pilot, lambda: "✓ ready to start" in text_of(app, "#verdict"))
        assert "512 tokens a window" in text_of(app, "#cost")
        assert "repositories: [/home/me/shop]" in text_of(app, "#text")
        await pilot.press("ctrl+s")
        await until(pilot, lambda: screen_of(app) == "monitor")
        assert app.client.engine.launched[0].training.context == 512
        assert app.state.run.run_id == RUN_ID


async def test_review_shows_a_problem_below_its_field_and_will_not_start():
    app = make_app(values={"lora.rank": 0})
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        await enter(pilot, "review")
        lines = text_of(app, "#text").splitlines()
        at = next(index for index, line in enumerate(lines) if "rank:" in line)
        assert lines[at + 1].strip().startswith("✗ 0 is not a whole number")
        assert app.screen.query_one("#start", Button).disabled
        await pilot.press("ctrl+s")
        assert not app.state.launching
        await pilot.press("f8")
        await until(pilot, lambda: screen_of(app) == "options")


async def test_preflight_and_launch_errors_are_said():
    engine = FixedEngine(cpu_machine())
    app = make_app(engine=engine)
    engine.check = lambda mapping: (_ for _ in ()).throw(OUTPUT_UNWRITABLE(path="/root/x", problem="Permission denied"))
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        await enter(pilot, "review")
        await until(pilot, lambda: "✗ 1 problem to fix" in text_of(app, "#verdict"))
        assert "output /root/x cannot be written: Permission denied" in text_of(app, "#text")
        del engine.check
        engine.launch = lambda config: (_ for _ in ()).throw(RuntimeError("[/bold] a defect"))
        await pilot.press("f5")
        await until(pilot, lambda: app.state.preflight.value is not None)
        await pilot.press("ctrl+s")
        await until(pilot, lambda: "a defect" in text_of(app, "#verdict"))
        assert screen_of(app) == "review"


async def test_what_failed_for_nobodys_fault_is_in_the_log(tmp_path):
    engine = FixedEngine(cpu_machine())
    engine.find_machine = lambda path: (_ for _ in ()).throw(ZeroDivisionError("[/bold]"))
    app = make_app(engine=engine)
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        await enter(pilot, "hardware")
        assert "✗ unexpected ZeroDivisionError: [/bold]" in text_of(app, "#inventory")
    assert "ZeroDivisionError" in (tmp_path / "state" / "elite-tui.log").read_text()


async def test_help_shows_the_keys_of_the_screen():
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await pilot.press("f1")
        await until(pilot, lambda: isinstance(app.screen, HelpScreen))
        shown = " ".join(str(line.content) for line in app.screen.query(Static))
        assert "ctrl+n" in shown
        assert "detach, stop or stay" in shown
        await pilot.press("escape")
        assert screen_of(app) == "project"


async def test_theme_and_palette():
    app = make_app()
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        await pilot.press("f2")
        assert app.theme == LIGHT.name
        await pilot.press("f2")
        assert app.theme == COLOUR_BLIND.name
        await pilot.press("f2")
        assert app.theme == DARK.name
        await pilot.press("ctrl+p")
        await pilot.pause()
        await pilot.press(*"Rescan")
        await pilot.pause(0.3)
        app.state.repository.value = None
        await pilot.press("enter", "enter")
        await until(pilot, lambda: app.state.repository.value is not None)


async def test_the_palette_offers_what_the_screen_can_do():
    app = make_app("monitor", handle=half_way())
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        await until(pilot, lambda: app.state.run.history.steps.last("loss") is not None)
        offered = {command.title for command in app.get_system_commands(app.screen)}
    assert {"Pause", "Stop", "Detach", "Help", "Quit", "Go to Runs", "Go to Result", "Go to Tier"} <= offered
    assert not {"Resume", "Result", "Continue"} & offered


async def test_enter_goes_from_field_to_field():
    app = make_app()
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        first = app.focused
        await pilot.press("enter")
        assert isinstance(app.focused, Input)
        assert app.focused is not first


async def test_a_state_folder_that_cannot_be_written_is_said(tmp_path):
    blocked = tmp_path / "file"
    blocked.touch()
    app = make_app(draft_path=blocked / "wizard.json")
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        await type_into(pilot, "model.name", "x")
        await until(pilot, lambda: len(app._notifications) > 0)
        assert "cannot be kept" in next(iter(app._notifications)).message


async def test_a_failure_of_the_app_is_in_the_log(tmp_path):
    async def fail():
        app = make_app("monitor", handle=half_way())
        async with app.run_test(size=SIZE) as pilot:
            await settled(pilot)
            await until(pilot, lambda: app.state.run.history.steps.last("loss") is not None)
            app.call_later(lambda: 1 // 0)
            await until(pilot, lambda: not app.is_running)

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert "ZeroDivisionError" in (tmp_path / "state" / "elite-tui.log").read_text()


async def test_a_pasted_megabyte_is_cut_and_the_next_key_counts():
    app = make_app(values={"data.repositories": []})
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        field = app.focused
        field.value = "/srv/"
        field.cursor_position = 5
        app.screen.post_message(events.Paste("x" * 1_000_000 + "\nsecond line"))
        await until(pilot, lambda: len(field.value) > 5)
        assert field.value == "/srv/" + "x" * (LONGEST - 5)
        await pilot.press("backspace", "y", "z")
        await settled(pilot)
        assert field.value == "/srv/" + "x" * (LONGEST - 6) + "y"
