"""The list of runs: filter, order, comparison, deletion."""

from __future__ import annotations

import dataclasses
import math
import shutil

import pytest
from textual.widgets import Button, DataTable, Input

from elite_tui.client.calls import Engine
from elite_tui.runs.comparison import LETTERS, read_comparison
from elite_tui.screens import runs
from elite_tui.screens.confirm import TypedConfirmScreen
from elite_tui.screens.runs import COLUMNS, RunTable, in_order, matching
from engine import config as run_config
from engine.errors.runs import RUN_DAMAGED
from engine.launch import launcher
from engine.protocol.events import EvalCompleted, PhaseChanged, RunFinished, RunStarted, StepCompleted
from engine.runs.journal import JournalWriter
from engine.runs.process_record import ProcessRecord, write_record
from engine.runs.run_directory import RunDirectory
from engine.runs.run_index import remember_output
from engine.runs.run_summary import RunSummary
from tests.runs import recipes
from tests.tui.recording import FOLDER, START
from tests.tui.support import make_app, screen_of, settled, text_of, until

SIZE = (140, 40)


def summary(number, **values):
    defaults = {
        "id": f"2026010{number}-100000-shop-{number}a2b",
        "path": FOLDER / str(number),
        "status": "completed",
        "model": "demo",
        "model_name": "shop",
        "context": 4096,
        "step": 10 * number,
        "total_steps": 60,
        "loss": 2.5 / number,
        "perplexity_before": 60.0,
        "perplexity_after": 6.0 * number,
        "started": START + number,
        "updated": START + 100,
    }
    return RunSummary(**{**defaults, **values})


def make_run(output, name, *, steps=4, rate=2e-4, loss=2.0, automatic=False, status="completed"):
    """Writes a run that has ended to disk; its configuration has no rate if that is automatic."""
    mapping = {
        "data": {"repositories": ["/home/me/shop"]},
        "output": {"directory": str(output), "model_name": name},
        "training": {"learning_rate": None if automatic else rate},
    }
    run = RunDirectory.create(run_config.from_mapping(mapping))
    journal = JournalWriter(run.journal_path, run.id)
    journal.append(RunStarted(model="demo", context=4096, total_steps=steps, device="cpu", learning_rate=rate))
    journal.append(EvalCompleted(step=0, loss=4.0, perplexity=math.exp(4.0), tokens=10))
    journal.append(PhaseChanged(phase="training"))
    for step in range(1, steps + 1):
        journal.append(
            StepCompleted(
                step=step,
                total_steps=steps,
                epoch=step / steps,
                loss=loss / step,
                lr=rate,
                grad_norm=1.0,
                tokens=100,
                tokens_per_second=50.0,
                seconds=2.0,
                host_used=1 << 30,
            )
        )
    journal.append(EvalCompleted(step=steps, loss=loss, perplexity=math.exp(loss), tokens=10))
    journal.append(RunFinished(status=status, steps=steps, seconds=9.0, adapter="adapter"))
    journal.close()
    return run


def statuses(app):
    table = app.screen.query_one(DataTable)
    return [str(table.get_row_at(row)[1]) for row in range(table.row_count)]


# --- contents of the list ------------------------------------------------------------------------------------


def test_every_word_must_match_somewhere():
    runs = [summary(1, model_name="Shop[/bold]"), summary(2, status="failed"), summary(3, model="qwen2.5-coder-1.5b")]
    assert matching(runs, "") == runs
    assert matching(runs, "shop[/B") == runs[:1]
    assert matching(runs, "fail") == runs[1:2]
    assert matching(runs, "qwen completed 3a2b") == runs[2:]
    assert matching(runs, "qwen failed") == []


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: column.name)
@pytest.mark.parametrize("turned", [False, True])
def test_orders(column, turned):
    runs = [summary(2, status="died", model="b"), summary(1), summary(3, status="failed", model="c", model_name="z")]
    unknown = dataclasses.replace(
        summary(4), loss=None, context=None, perplexity_after=None, started=None, status="died", model="zz", id="zzz"
    )
    found = in_order([unknown, *runs], column, turned=turned)
    assert len(found) == 4
    keys = [column.key(run) for run in found if column.key(run) is not None]
    assert keys == sorted(keys, reverse=column.newest_first is not turned)
    assert all(column.key(run) is None for run in found[len(keys) :])


def test_a_comparison_names_what_differs_and_what_is_best(tmp_path):
    one = make_run(tmp_path / "out", "one", rate=1e-4, loss=1.5)
    two = make_run(tmp_path / "out", "two", steps=6, rate=3e-4, loss=2.5)
    two.config_path.write_text(two.config_path.read_text() + "\nof_the_future: {width: 3}\n")
    found = read_comparison([one.path, two.path])
    figures = {row.name: row for row in found.figures}
    assert figures["steps"].values == ("4/4", "6/6")
    assert figures["perplexity after"].best == 0
    assert figures["tokens/s"].best is None
    assert figures["GPU peak"].values == ("n/a", "n/a")
    differing = {row.name: row.values for row in found.differing}
    assert differing["training.learning_rate"] == ("0.0001", "0.0003")
    assert differing["output.model_name"] == ("one", "two")
    assert differing["of_the_future.width"] == ("n/a", "3")
    assert "lora.rank" not in differing or differing["lora.rank"][1] == "n/a"


def test_a_comparison_tells_automatic_rates_apart(tmp_path):
    runs = [
        make_run(tmp_path / "out", name, rate=rate, automatic=automatic)
        for name, rate, automatic in (("one", 1.8e-3, True), ("two", 1.3e-3, True), ("three", 1.3e-3, False))
    ]
    found = read_comparison([run.path for run in runs])
    differing = {row.name: row.values for row in found.differing}
    assert differing["training.learning_rate"] == ("auto (0.0018)", "auto (0.0013)", "0.0013")


def test_a_comparison_survives_what_is_damaged(tmp_path):
    one = make_run(tmp_path / "out", "one")
    two = make_run(tmp_path / "out", "two")
    two.config_path.write_text("{[")
    two.journal_path.write_bytes(b"\xff\n{}\n")
    found = read_comparison([one.path, two.path, tmp_path / "nowhere"])
    assert [run.letter for run in found.runs] == list(LETTERS[:3])
    assert found.runs[1].config == {}
    assert found.figures[0].values[1] == "starting"


# --- the screen ----------------------------------------------------------------------------------------------


@pytest.fixture
def three_runs(tmp_path):
    """Makes three completed runs in a known output folder."""
    output = tmp_path / "out"
    remember_output(output)
    return [make_run(output, name, rate=rate) for name, rate in (("alpha", 1e-4), ("beta", 2e-4), ("gamma", 3e-4))]


async def listed(pilot, count):
    app = pilot.app
    await settled(pilot)
    await until(pilot, lambda: app.screen.query_one(RunTable).row_count == count)


async def test_filtering_and_sorting(three_runs):
    app = make_app("runs", engine=Engine())
    async with app.run_test(size=SIZE) as pilot:
        await listed(pilot, 3)
        await pilot.press("slash", *"beta")
        await until(pilot, lambda: "1 of 3 runs" in text_of(app, "#about"))
        await pilot.press("enter")
        assert isinstance(app.focused, RunTable)
        await pilot.press("escape")
        await until(pilot, lambda: "3 runs" in text_of(app, "#about"))
        await pilot.press("o")
        assert "by run" in text_of(app, "#about")
        await pilot.press("o", "o")
        assert "by name" in text_of(app, "#about")
        table = app.screen.query_one(RunTable)
        names = [str(table.get_row_at(row)[2]) for row in range(3)]
        assert names == ["alpha", "beta", "gamma"]
        await pilot.press("O")
        assert str(table.get_row_at(0)[2]) == "gamma"
        assert "▴" in str(table.columns["1"].label)
        # The heading of the status column, then once more.
        await pilot.click("#runs", offset=(6, 0))
        await until(pilot, lambda: "by status" in text_of(app, "#about"))


async def test_comparing_marked_runs(three_runs):
    app = make_app("runs", engine=Engine())
    async with app.run_test(size=SIZE) as pilot:
        await listed(pilot, 3)
        await pilot.press("c")
        await until(pilot, lambda: len(app._notifications) == 1)
        await pilot.press("space", "space")
        assert "◉ 2 marked" in text_of(app, "#about")
        await pilot.press("c")
        await until(pilot, lambda: screen_of(app) == "compare")
        await until(pilot, lambda: app.screen.query_one(DataTable).row_count > 12)
        legend = text_of(app, "#chart").splitlines()[0]
        assert "A " in legend
        assert "B " in legend
        assert "✓ completed" in text_of(app, "#who")
        rows = [
            app.screen.query_one(DataTable).get_row_at(row) for row in range(app.screen.query_one(DataTable).row_count)
        ]
        assert "training.learning_rate" in [str(row[0]) for row in rows]
        await pilot.press("right_square_bracket", "plus", "y", "x")
        assert "log  x tokens" in text_of(app, "#chart-tabs")
        await pilot.press("f5")
        await settled(pilot)
        await pilot.press("escape")
        await until(pilot, lambda: screen_of(app) == "runs")
        await settled(pilot)


async def test_deleting_asks_for_the_name(three_runs):
    app = make_app("runs", engine=Engine())
    async with app.run_test(size=SIZE) as pilot:
        await listed(pilot, 3)
        table = app.screen.query_one(RunTable)
        paths = [row.value for row in table.rows]
        target = next(run for run in three_runs if str(run.path) == paths[0])
        await pilot.press("delete")
        await until(pilot, lambda: isinstance(app.screen, TypedConfirmScreen))
        assert app.screen.query_one("#agreed", Button).disabled
        await pilot.press(*"nope", "enter")
        assert isinstance(app.screen, TypedConfirmScreen)
        await pilot.press("escape")
        await until(pilot, lambda: screen_of(app) == "runs")
        assert target.path.is_dir()
        await pilot.press("delete")
        await until(pilot, lambda: isinstance(app.screen, TypedConfirmScreen))
        app.screen.query_one(Input).value = target.id[-4:]
        await until(pilot, lambda: not app.screen.query_one("#agreed", Button).disabled)
        await pilot.press("enter")
        await until(pilot, lambda: not target.path.exists())
        await listed(pilot, 2)
        assert all(run.path.is_dir() for run in three_runs if run is not target)


async def test_a_live_run_is_not_deleted(three_runs):
    import os

    for run in three_runs:
        write_record(run.process_path, ProcessRecord.of_process(os.getpid(), 1000))
    app = make_app("runs", engine=Engine())
    async with app.run_test(size=SIZE) as pilot:
        await listed(pilot, 3)
        assert statuses(app) == ["● starting"] * 3
        await pilot.press("delete")
        await until(pilot, lambda: len(app._notifications) == 1)
        assert screen_of(app) == "runs"
        # The engine refuses too, in case the list is out of date.
        app.run_desk.delete(three_runs[0].id, three_runs[0].path)
        await until(pilot, lambda: len(app._notifications) == 2)
        assert "still active" in " ".join(note.message for note in app._notifications)
        await settled(pilot)
    assert three_runs[0].path.is_dir()


async def test_a_deleted_run_leaves_the_monitor(three_runs):
    app = make_app("monitor", engine=Engine())
    app._runs = [str(run.path) for run in three_runs[:2]]
    async with app.run_test(size=SIZE) as pilot:
        await until(pilot, lambda: len(app.state.open_runs) == 2)
        await until(pilot, lambda: app.state.run.ended)
        app.run_desk.delete(three_runs[0].id, three_runs[0].path)
        await until(pilot, lambda: len(app.state.open_runs) == 1)
        assert app.state.run.run_id == three_runs[1].id
        await settled(pilot)


async def test_a_list_that_cannot_be_read():
    engine = Engine()
    engine.list_runs = lambda: (_ for _ in ()).throw(RUN_DAMAGED(path="/[/x]", problem="gone"))
    app = make_app("runs", engine=engine)
    async with app.run_test(size=SIZE) as pilot:
        await until(pilot, lambda: "run directory /[/x] is damaged" in text_of(app, "#about"))
        await pilot.press("delete", "space", "c", "enter", "o", "O", "escape")
        assert screen_of(app) == "runs"


@pytest.mark.parametrize("key", ["escape", "f3"])
async def test_the_list_is_left_as_it_was_entered(key):
    app = make_app()
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        app.go("data")
        await until(pilot, lambda: screen_of(app) == "data" and app.screen.is_mounted)
        await pilot.press("f3")
        await until(pilot, lambda: screen_of(app) == "runs" and app.screen.is_mounted)
        await pilot.press("slash", "x", "escape")
        assert screen_of(app) == "runs"
        await pilot.press(key)
        await until(pilot, lambda: screen_of(app) == "data")


async def test_the_list_is_no_way_round_through_the_comparison():
    app = make_app()
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        for name in ("runs", "compare", "runs"):
            app.go(name)
            await until(pilot, lambda name=name: screen_of(app) == name and app.screen.is_mounted)
        await pilot.press("escape")
        await until(pilot, lambda: screen_of(app) == "project")
        assert "Go to Compare runs" not in {command.title for command in app.get_system_commands(app.screen)}


async def test_without_the_run_that_it_was_opened_from_the_list_says_how_to_go_on():
    app = make_app()
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        app._screen_name = "monitor"  # whose last tab was closed
        app.go("runs")
        await until(pilot, lambda: screen_of(app) == "runs" and app.screen.is_mounted)
        await pilot.press("escape")
        await until(pilot, lambda: bool(app._notifications))
        assert screen_of(app) == "runs"


async def test_home_and_end_go_to_the_first_and_the_last_run(three_runs):
    app = make_app("runs", engine=Engine())
    async with app.run_test(size=SIZE) as pilot:
        await until(pilot, lambda: len(statuses(app)) == 3)
        table = app.screen.query_one(RunTable)
        await pilot.press("end")
        assert table.cursor_row == 2
        await pilot.press("home")
        assert table.cursor_row == 0


async def test_only_a_run_without_its_last_step_is_resumed_and_a_refusal_is_told(tmp_path):
    stopped = make_run(tmp_path / "out", "stopped", status="stopped")
    make_run(tmp_path / "out", "completed")
    remember_output(tmp_path / "out")
    app = make_app("runs", engine=Engine())
    async with app.run_test(size=SIZE) as pilot:
        await until(pilot, lambda: len(statuses(app)) == 2)
        offered = {}
        for _ in range(2):
            run = app.screen._run_under_cursor()
            offered[run.status] = app.screen.check_action("resume", ())
            await pilot.press("down")
        assert offered == {"stopped": True, "completed": False}
        app.screen.query_one(RunTable).move_cursor(row=statuses(app).index("■ stopped"))
        shutil.rmtree(stopped.path)
        await pilot.press("r")
        await until(pilot, lambda: any(note.title == "not resumed" for note in app._notifications))
        assert screen_of(app) == "runs"
        assert not app.state.launching


async def test_the_list_follows_a_run_that_trains_and_its_end(tmp_path, monkeypatch):
    """A real process of the short recipe; no key is pressed."""
    monkeypatch.setattr(runs, "REFRESH_SECONDS", 0.1)
    mapping = {"training": {"max_steps": 150}, "output": {"directory": str(tmp_path / "out"), "model_name": "ok"}}
    handle = launcher.launch(run_config.from_mapping(mapping), recipe=recipes.PATH)
    app = make_app("runs", engine=Engine())
    try:
        async with app.run_test(size=SIZE) as pilot:
            seen = set()

            def step():
                table = app.screen.query_one(RunTable)
                seen.update(str(table.get_row_at(row)[5]) for row in range(table.row_count))
                return len(seen)

            await until(pilot, lambda: step() > 2, seconds=60)
            await until(pilot, lambda: statuses(app) == ["✓ completed"], seconds=60)
    finally:
        if handle._process.exitcode is None:
            handle._process.kill()
        handle.wait_exit(30)
        handle.close()
