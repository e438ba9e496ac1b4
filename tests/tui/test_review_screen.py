"""The review: pre-flight rows as they arrive, the run's files, and its cost."""

from __future__ import annotations

import threading

from textual.widgets import Button, Select, Static

from elite_tui.wizard.checks import Checks, in_words
from engine.errors.planning import NO_GPU
from engine.launch.doctor import NAMES, Check
from tests.tui.support import CHECKS, FixedEngine, cpu_machine, gpu_machine, make_app, screen_of, settled, until

MODEL = {"model.name": "qwen2.5-coder-1.5b"}


def text_of(app, selector):
    return str(app.screen.query_one(selector, Static).content)


async def enter(pilot):
    await settled(pilot)
    pilot.app.go("review")
    await until(pilot, lambda: screen_of(pilot.app) == "review" and pilot.app.screen.is_mounted)


async def test_rows_come_in_one_after_the_other():
    more = threading.Event()
    engine = FixedEngine(gpu_machine())

    def examine(mapping):
        yield CHECKS[0]
        more.wait(20)
        yield from CHECKS[1:]

    engine.examine = examine
    app = make_app(engine=engine, values=MODEL)
    async with app.run_test(size=(120, 36)) as pilot:
        await enter(pilot)
        await until(pilot, lambda: "✓ repository" in text_of(app, "#rows"))
        assert f"… {NAMES[1]}" in text_of(app, "#rows")
        assert "examining" in text_of(app, "#verdict")
        assert "ready" not in text_of(app, "#verdict")
        more.set()
        await until(pilot, lambda: app.state.checks.done)
        await until(pilot, lambda: "1 to know about" in text_of(app, "#verdict"))
        assert "→ compare held-out perplexity" in " ".join(text_of(app, "#rows").split())
        # On entry without changes, it is not examined again.
        engine.examine = lambda mapping: iter(())
        app.go("options")
        await until(pilot, lambda: screen_of(app) == "options")
        app.go("review")
        await until(pilot, lambda: screen_of(app) == "review")
        assert app.state.checks.done


async def test_a_run_never_starts_on_a_simulated_card():
    engine = FixedEngine(gpu_machine())
    app = make_app(engine=engine, values=MODEL)
    app.state.simulated = "rtx-3060-12gb"
    async with app.run_test(size=(80, 24)) as pilot:
        await enter(pilot)
        await until(pilot, lambda: app.state.checks.done)
        assert app.screen.query_one("#start", Button).disabled
        assert "a plan only" in text_of(app, "#verdict")
        assert "Checks of this machine; the plan is rtx-3060-12gb's." in text_of(app, "#rows")
        await pilot.press("ctrl+s")
        app.run_desk.launch()
        assert engine.launched == []
        for name in ("project", "hardware", "tiers", "options", "data", "review", "runs"):
            app.go(name)
            await until(pilot, lambda name=name: screen_of(app) == name and app.screen.is_mounted)
            assert text_of(app, "#simulated") == "SIMULATED"


async def test_a_failed_row_keeps_the_run_from_starting():
    engine = FixedEngine(gpu_machine())
    engine.checks = [
        *CHECKS[:-1],
        Check(name="trial step", status="failed", text="[/bold] loss nan", remedy="use bf16"),
    ]
    app = make_app(engine=engine, values=MODEL)
    async with app.run_test(size=(120, 36)) as pilot:
        await enter(pilot)
        await until(pilot, lambda: "✗ 1 check failed: trial step" in text_of(app, "#verdict"))
        assert "→ use bf16" in text_of(app, "#rows")
        assert app.screen.query_one("#start", Button).disabled
        await pilot.press("ctrl+s")
        assert not engine.launched


async def test_rows_of_a_former_draft_are_dropped():
    late = threading.Event()
    engine = FixedEngine(gpu_machine())

    def examine(mapping):
        late.wait(20)
        yield Check(name="repository", status="failed", text="of the former draft")

    engine.examine = examine
    app = make_app(engine=engine, values=MODEL)
    async with app.run_test(size=(120, 36)) as pilot:
        await enter(pilot)
        await until(pilot, lambda: app.state.checks.running)
        app.drafting.edit("training.epochs", "3")
        late.set()
        await settled(pilot)
        assert app.state.checks.rows == []


async def test_an_examination_that_breaks_is_said(tmp_path):
    engine = FixedEngine(gpu_machine())

    def examine(mapping):
        raise ZeroDivisionError("[/bold]")
        yield

    engine.examine = examine
    app = make_app(engine=engine, values=MODEL)
    async with app.run_test(size=(120, 36)) as pilot:
        await enter(pilot)
        await until(pilot, lambda: "unexpected ZeroDivisionError: [/bold]" in text_of(app, "#rows"))
    assert "ZeroDivisionError" in (tmp_path / "state" / "elite-tui.log").read_text()


async def test_the_files_by_key_and_button():
    app = make_app(machine=gpu_machine(), values=MODEL)
    async with app.run_test(size=(80, 24)) as pilot:
        await enter(pilot)
        await settled(pilot)
        assert app.screen.query_one("#checks").region
        assert not app.screen.query_one("#yaml").region
        await pilot.press("f4")
        await until(pilot, lambda: bool(app.screen.query_one("#yaml").region))
        await pilot.press("f4")
        await until(pilot, lambda: bool(app.screen.query_one("#deepspeed").region))
        assert '"zero_optimization"' in text_of(app, "#deepspeed-text")
        assert '"lr": "auto"' not in text_of(app, "#deepspeed-text")  # the plan's
        app.screen.query_one("#view-checks", Button).press()
        await until(pilot, lambda: bool(app.screen.query_one("#checks").region))


async def test_the_real_rows_are_those_of_engine_doctor(tmp_path):
    """Replaces only the trial step's child process, which takes seconds."""
    from engine.config import from_mapping
    from engine.launch.doctor import examine

    engine = FixedEngine(cpu_machine())
    engine.examine = lambda mapping: examine(from_mapping(mapping), probe=False)
    app = make_app(engine=engine, values={"data.repositories": [str(tmp_path)], "output.directory": str(tmp_path)})
    async with app.run_test(size=(120, 36)) as pilot:
        await enter(pilot)
        await until(pilot, lambda: app.state.checks.done)
        assert [row.name for row in app.state.checks.rows] == [
            name for name in NAMES if name in {row.name for row in app.state.checks.rows}
        ]
        assert app.state.checks.failed[0].name == "repository"


def test_rows_in_words_fit_every_width():
    checks = Checks(names=NAMES, rows=list(CHECKS), running=True)
    for width in (30, 56, 80, 120):
        lines = str(in_words(checks, width)).splitlines()
        assert max(map(len, lines)) <= width
    checks.error = NO_GPU()
    assert str(in_words(checks, 80)).startswith("✗ --vram")


async def test_the_hours_make_a_schedule():
    app = make_app(machine=gpu_machine(), values=MODEL)
    async with app.run_test(size=(80, 24)) as pilot:
        await enter(pilot)
        await until(pilot, lambda: "in all" in text_of(app, "#cost"))
        seconds = app.state.tiers.value.choice.seconds
        assert f"about {int(seconds // 3600)}h" in text_of(app, "#cost") or seconds < 3600
        assert "{" not in text_of(app, "#cost")
        select = app.screen.query_one("#hours", Select)
        assert select.value == ""
        assert app.state.tiers.value.choice.schedule.hours is None
        select.focus()
        await pilot.press("enter", "down", "enter")
        await until(pilot, lambda: app.state.draft.get("training.hours") == 1)
        await until(pilot, lambda: (plans := app.state.tiers.value) and plans.choice.schedule.hours == 1)
        schedule = app.state.tiers.value.choice.schedule
        assert schedule.seconds <= 3600
        select.value = ""
        await until(pilot, lambda: app.state.draft.get("training.hours") is None)
        await until(pilot, lambda: (plans := app.state.tiers.value) and plans.choice.schedule.hours is None)


async def test_other_hours_of_the_draft_are_shown():
    app = make_app(machine=gpu_machine(), values={**MODEL, "training.hours": 2.5})
    async with app.run_test(size=(80, 24)) as pilot:
        await enter(pilot)
        assert app.screen.query_one("#hours", Select).value == "2.5"
        assert app.state.draft.get("training.hours") == 2.5
