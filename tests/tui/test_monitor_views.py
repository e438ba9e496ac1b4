"""Views of the monitor: curves, tabs, events, log, several runs, unreachable runs."""

from __future__ import annotations

import dataclasses
import json
import os
import time

import pytest
from textual.events import MouseScrollUp
from textual.widgets import Input

from elite_tui.plot.viewport import Viewport
from elite_tui.runs.curves import CHARTS
from elite_tui.state_part import StatePart
from elite_tui.widgets.chart import LineChart
from elite_tui.widgets.event_list import EventList
from elite_tui.widgets.log_pane import LogPane
from engine.launch.handle import RunHandle
from engine.protocol.events import (
    LogLine,
    PhaseChanged,
    RecoveryTaken,
    RunFailed,
    RunStarted,
    StepCompleted,
    StepProgress,
    WarningRaised,
)
from engine.runs.access import Access
from engine.runs.process_record import STALE_S, ProcessRecord, write_record
from tests.tui.recording import RUN_ID, START, recorded
from tests.tui.support import (
    FixedEngine,
    Replay,
    copy_recording,
    gpu_machine,
    half_way,
    make_app,
    settled,
    text_of,
    until,
)

SIZE = (120, 36)
GIB = 1 << 30


async def at_step(pilot, step):
    app = pilot.app
    await settled(pilot)
    await until(pilot, lambda: app.state.run is not None and app.state.run.done_steps >= step)
    await until(pilot, lambda: f"step {step}" in text_of(app, "#progress"))


def chart_text(app):
    return text_of(app, "#chart")


def rows_of(pane):
    return [f"{row.gutter}{row.text}" for row in pane.rows]


# --- curves --------------------------------------------------------------------------------------------------


async def test_every_chart_has_a_key_and_a_tab():
    app = make_app("monitor", handle=half_way())
    async with app.run_test(size=SIZE) as pilot:
        await at_step(pilot, 33)
        titles = {}
        for kind in CHARTS:
            await pilot.press(kind.key)
            titles[kind.name] = chart_text(app).splitlines()[0]
        assert titles["loss"].startswith("Loss nats a token")
        assert "now 9.00e-05" in titles["rate"]
        assert "norm" in titles["gradient"]
        assert "now 4,426" in titles["speed"]
        assert "used 1.77" in titles["ram"]
        assert "plan 1.96" in titles["ram"]
        await pilot.press("5")
        assert "this run trains on cpu" in chart_text(app)
        tabs = text_of(app, "#chart-tabs")
        await pilot.click("#chart-tabs", offset=(tabs.index("Speed") + 1, 0))
        await until(pilot, lambda: chart_text(app).startswith("Speed"))


async def test_memory_of_a_gpu_stands_against_the_plan():
    handle = Replay([])
    handle.add(RunStarted(model="m", context=64, total_steps=9, device="gpu", planned_gpu_bytes=8 * GIB))
    for step in (1, 2):
        handle.add(
            StepCompleted(
                step=step,
                total_steps=9,
                epoch=0.1,
                loss=1.0,
                lr=1.0,
                grad_norm=1.0,
                tokens=64,
                tokens_per_second=1.0,
                gpu_allocated=5 * GIB,
                gpu_reserved=7 * GIB,
                gpu_peak=6 * GIB,
            )
        )
    app = make_app("monitor", handle=handle)
    async with app.run_test(size=SIZE) as pilot:
        await at_step(pilot, 2)
        await pilot.press("5")
        legend, *plot = chart_text(app).splitlines()
        assert "r reserved 7.00" in legend
        assert "p peak 6.00" in legend
        assert "╌ plan 8.00" in legend
        assert any("╌╌╌╌" in line for line in plot)
        assert "GPU peak    6.00 GiB of 8.00 GiB planned" in text_of(app, "#figures")


async def test_zooming_moving_and_all_of_it_again():
    app = make_app("monitor", handle=half_way())
    async with app.run_test(size=SIZE) as pilot:
        await at_step(pilot, 33)
        chart = app.screen.query_one("#chart", LineChart)
        assert "0 whole" not in text_of(app, "#chart-tabs")
        await pilot.press("plus", "equals_sign")
        assert chart.viewport.span == pytest.approx(33 * 0.49, rel=0.05)
        assert chart.viewport.end is None
        assert "0 whole" in text_of(app, "#chart-tabs")
        await pilot.press("left", "left")
        assert chart.viewport.end is not None
        await pilot.press("minus")
        await pilot.press("0")
        assert chart.viewport == Viewport()
        await pilot._post_mouse_events([MouseScrollUp], "#chart", offset=(20, 4))
        await until(pilot, lambda: chart.viewport.span is not None)


async def test_axes_and_smoothing():
    app = make_app("monitor", handle=half_way())
    async with app.run_test(size=SIZE) as pilot:
        await at_step(pilot, 33)
        assert "raw  y linear  x step" in text_of(app, "#chart-tabs")
        await pilot.press("x")
        assert "270K" in chart_text(app) or "200K" in chart_text(app)
        await pilot.press("x")
        assert chart_text(app).splitlines()[-1].split()[-2:] == ["1m", "time"]
        await pilot.press("x", "y", "right_square_bracket", "right_square_bracket")
        assert "~0.9  y log  x step" in text_of(app, "#chart-tabs")
        assert "train ~0.9" in chart_text(app)
        await pilot.press("left_square_bracket", "left_square_bracket", "left_square_bracket")
        assert "] raw" in text_of(app, "#chart-tabs")
        tabs = text_of(app, "#chart-tabs")
        await pilot.click("#chart-tabs", offset=(tabs.index("] raw") + 3, 0))
        await until(pilot, lambda: "~0.6" in text_of(app, "#chart-tabs"))


async def test_what_happened_is_marked_on_the_axis():
    app = make_app("monitor", handle=half_way())
    async with app.run_test(size=SIZE) as pilot:
        await at_step(pilot, 33)
        axis = chart_text(app).splitlines()[-2]
        assert axis.index("!") < axis.index("▪") < axis.index("↻")


async def test_a_wide_terminal_shows_the_other_charts_small_and_the_events_beside_the_log():
    app = make_app("monitor", handle=half_way())
    async with app.run_test(size=(200, 60)) as pilot:
        await at_step(pilot, 33)
        titles = [text_of(app, f"#small-{index}").split("  ")[0] for index in range(4)]
        assert titles == ["Learning rate", "Gradient norm", "Speed tokens/s", "RAM"]
        assert app.screen.query_one("#events").size.width > 40
        await pilot.press("plus")
        spans = {chart.viewport.span for chart in app.screen.query(LineChart)}
        assert len(spans) == 1
        await pilot.press("l")
        assert isinstance(app.focused, EventList)
        await pilot.press("l")
        assert isinstance(app.focused, LogPane)


# --- progress and the time left ------------------------------------------------------------------------------


async def test_a_long_step_shows_its_stages_and_the_plan_tells_the_time(tmp_path):
    run = copy_recording(tmp_path / "out")
    lines = run.journal_path.read_text().splitlines(keepends=True)
    run.journal_path.write_text("".join(lines[:8]))
    run.plan_path.write_text(json.dumps({"step_seconds": 100.0, "gpu_peak_bytes": "many", "note": None}))
    write_record(run.process_path, ProcessRecord.of_process(os.getpid(), 0))
    handle = RunHandle.attach(run)
    app = make_app("monitor", handle=handle)
    app.state.clock = lambda: 0.0  # the time of the latest event counts
    async with app.run_test(size=(200, 60)) as pilot:
        await settled(pilot)
        await until(pilot, lambda: "ETA 1h 40m" in text_of(app, "#progress"))
        assert "predicted by the plan" in text_of(app, "#progress")
        run_view = app.state.run
        for stage, layer in (("forward", 27), ("loss", None), ("backward", 12)):
            envelope = recorded()[8]
            run_view.apply(
                type(envelope)(
                    run=RUN_ID,
                    seq=99,
                    time=START + 46,
                    event=StepProgress(step=1, stage=stage, done=5, total=8, layer=layer, tile=3 if layer else None),
                )
            )
        app.tell(StatePart.RUN)
        await until(pilot, lambda: "backward layer 12 tile 3" in text_of(app, "#progress"))
        assert "forward ✓ loss ✓ backward ● optimiser ○" in text_of(app, "#progress")
        assert "5/8 · 40s so far" in text_of(app, "#progress")
        assert "ETA 1h 39m" in text_of(app, "#progress")


async def test_silence_is_said():
    app = make_app("monitor", handle=half_way())
    app.state.clock = lambda: START + 4000
    async with app.run_test(size=SIZE) as pilot:
        await at_step(pilot, 33)
        assert "no news for 1h 5m" in text_of(app, "#notice")


# --- events and log ------------------------------------------------------------------------------------------


async def test_events_stand_apart_with_their_remedies():
    app = make_app("monitor", handle=half_way())
    async with app.run_test(size=(80, 24)) as pilot:
        await at_step(pilot, 33)
        events = app.screen.query_one(EventList)
        assert not events.size
        await pilot.press("l")
        await until(pilot, lambda: bool(events.rows))
        rows = rows_of(events)
        assert "10:00:36 ! the disk is slow" in rows
        assert rows[rows.index("10:00:36 ! the disk is slow") + 1] == "         → use another folder"
        assert "10:00:46 ▪ checkpoint saved: checkpoints/step-000020" in rows
        assert "10:00:56 ↻ recovered: the step was repeated (its loss was not finite)" in rows
        app.client._followed.popitem()[1].handle.add(WarningRaised(code="x", text="[/bold]", hint="[red]"))
        await pilot.press("l")
        await until(pilot, lambda: not events.size)
        assert isinstance(app.focused, LogPane)


async def test_new_events_arrive_at_the_end():
    handle = half_way()
    app = make_app("monitor", handle=handle)
    async with app.run_test(size=SIZE) as pilot:
        await at_step(pilot, 33)
        await pilot.press("l")
        events = app.screen.query_one(EventList)
        handle.add(WarningRaised(code="x", text="[/bold] hot", hint="[red] cool it"), RecoveryTaken(what="a", why="b"))
        await until(pilot, lambda: rows_of(events)[-1].endswith("↻ recovered: a (b)"))
        assert rows_of(events)[-3].endswith("! [/bold] hot")
        assert "Events 13 · ! 2" in text_of(app, "#event-tabs")


async def test_searching_the_log_and_its_levels():
    handle = half_way()
    app = make_app("monitor", handle=handle)
    async with app.run_test(size=SIZE) as pilot:
        await at_step(pilot, 33)
        pane = app.screen.query_one(LogPane)
        everything = len(pane.rows)
        await pilot.press("slash", *"SAVE")
        await until(pilot, lambda: pane.highlight == "save")
        assert rows_of(pane) == [
            "10:00:46   checkpoint saved: checkpoints/step-000020",
            "10:01:06   SaveNow accepted: saved",
        ]
        assert "“save”: 2 of" in text_of(app, "#log-tabs")
        # Letters typed into the search are not commands.
        assert handle.sent == []
        await pilot.press("enter")
        assert isinstance(app.focused, LogPane)
        handle.add(LogLine(level="info", text="nothing of it"), LogLine(level="error", text="cannot SAVE"))
        await until(pilot, lambda: len(pane.rows) == 3)
        await pilot.press("v", "v")
        assert [row.text for row in pane.rows] == ["cannot SAVE"]
        assert "warning and above" in text_of(app, "#log-tabs")
        await pilot.press("slash", "escape")
        assert len(pane.rows) == 3
        assert not app.screen.query_one("#search", Input).display
        await pilot.press("v", "v")
        assert len(pane.rows) == everything + 2


async def test_the_log_marks_what_was_found():
    app = make_app("monitor", handle=half_way())
    async with app.run_test(size=SIZE) as pilot:
        await at_step(pilot, 33)
        await pilot.press("slash", *"disk")
        pane = app.screen.query_one(LogPane)
        await until(pilot, lambda: len(pane.rows) == 1)
        found = [segment.text for segment in pane.render_line(0) if segment.style and segment.style.reverse]
        assert found == ["disk"]


async def test_a_failure_is_told_in_whole_sentences():
    handle = half_way()
    handle.add(
        RunFailed(
            error="out-of-memory",
            message="out of GPU memory in backward: the logits were the largest part of what did not fit any more",
            hint="choose a lower tier [/bold] or a smaller model, and then start again from the last checkpoint",
            exit_code=4,
        )
    )
    app = make_app("monitor", handle=handle)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await until(pilot, lambda: "✗ failed" in text_of(app, "#status"))
        text = " ".join(text_of(app, "#progress").split())
        assert "what did not fit any more" in text
        assert "→ choose a lower tier [/bold] or" in text
        assert "from the last checkpoint" in text


# --- several runs --------------------------------------------------------------------------------------------


class ManyRuns(FixedEngine):
    """An engine that replays several runs by name."""

    def __init__(self, handles):
        super().__init__(gpu_machine())
        self.handles = handles

    def open_run(self, reference):
        return self.handles[reference]


def copies(tmp_path, *names):
    """Makes run directories with the recorded journal, each under its own name."""
    handles = {}
    for name in names:
        run = copy_recording(tmp_path / name)
        path = run.path.with_name(f"20260102-100000-{name}-0000")
        run.path.rename(path)
        run = type(run)(path)
        run.journal_path.write_text(run.journal_path.read_text().replace(RUN_ID, path.name))
        handles[name] = RunHandle.attach(run)
    return handles


async def test_several_runs_in_tabs(tmp_path):
    engine = ManyRuns(copies(tmp_path, "one", "two", "three"))
    app = make_app("monitor", engine=engine)
    app._runs = ["one", "two", "three"]
    async with app.run_test(size=SIZE) as pilot:
        await until(pilot, lambda: len(app.state.open_runs) == 3)
        await until(pilot, lambda: all(run.view.ended for run in app.state.open_runs))
        await until(pilot, lambda: "✓ one-0000  ✓ two-0000  ✓ three-0000" in text_of(app, "#run-tabs"))
        assert app.state.run.run_id.endswith("one-0000")
        await pilot.press("full_stop")
        await until(pilot, lambda: "two-0000" in text_of(app, "#status"))
        await pilot.press("comma", "comma")
        await until(pilot, lambda: "three-0000" in text_of(app, "#status"))
        tabs = text_of(app, "#run-tabs")
        await pilot.click("#run-tabs", offset=(tabs.index("one-0000") + 1, 0))
        await until(pilot, lambda: "one-0000" in text_of(app, "#status"))
        await pilot.press("k")
        await until(pilot, lambda: "two-0000" in text_of(app, "#status"))
        await pilot.press("k")
        await until(pilot, lambda: not app.screen.query_one("#run-tabs").display)
        assert len(app.state.open_runs) == 1
        assert not app.screen.check_action("next_run", ())
        await pilot.press("k")
        await until(pilot, lambda: app.screen.ROOM == "runs")
        await settled(pilot)


async def test_commands_go_to_the_run_on_screen(tmp_path):
    first = half_way()
    second = Replay([dataclasses.replace(envelope, run="another") for envelope in recorded(until_step=33)])
    second.run = type(second.run)(second.run.path.with_name("another"))
    engine = ManyRuns({"a": first, "b": second})
    app = make_app("monitor", engine=engine)
    app._runs = ["a", "b"]
    async with app.run_test(size=SIZE) as pilot:
        await until(pilot, lambda: len(app.state.open_runs) == 2)
        await until(pilot, lambda: app.state.run.step is not None)
        await pilot.press("w")
        await until(pilot, lambda: bool(first.sent))
        await pilot.press("full_stop")
        await until(pilot, lambda: app.state.run.run_id == "another")
        await pilot.press("e")
        await until(pilot, lambda: bool(second.sent))
        assert [type(command).__name__ for command in first.sent] == ["SaveNow"]
        assert [type(command).__name__ for command in second.sent] == ["EvaluateNow"]
        await pilot.press("d")
    assert RUN_ID in app.return_value
    assert "another" in app.return_value


# --- unreachable runs ----------------------------------------------------------------------------------------


async def test_a_run_that_cannot_be_controlled_says_why():
    handle = half_way()
    handle.reach = Access(here=False, refusal="its process is on another machine; this folder is a copy or a mount")
    app = make_app("monitor", handle=handle)
    async with app.run_test(size=SIZE) as pilot:
        await at_step(pilot, 33)
        await until(pilot, lambda: "⊘ read-only: its process is on another machine" in text_of(app, "#notice"))
        assert app.screen.check_action("pause", ()) is None
        await pilot.press("p", "w", "e", "s")
        await pilot.pause()
        assert handle.sent == []
        # This machine's levels are unrelated to that run.
        await until(pilot, lambda: not app.screen.query_one("MachineGauges").display)
        await pilot.press("ctrl+q")
        await until(pilot, lambda: app.return_value is not None)
    assert f"elite-tui monitor {handle.run.path}" in app.return_value


async def test_a_copy_from_another_machine(tmp_path):
    """Follows a folder with the record of a process on another machine and no socket; the run comes back to life."""
    run = copy_recording(tmp_path / "out")
    lines = run.journal_path.read_text().splitlines(keepends=True)
    run.journal_path.write_text("".join(lines[:60]))
    write_record(run.process_path, ProcessRecord(pid=1, start="1", place="elsewhere/4026531836", first_seq=0))
    for path in (run.process_path, run.config_path):
        os.utime(path, (0, 0))
    assert time.time() > STALE_S
    app = make_app("monitor", handle=RunHandle.attach(run))
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        await until(pilot, lambda: app.state.run.failed is not None)
        await until(pilot, lambda: "no sign of life" in text_of(app, "#progress"))
        # The next synchronisation brings more of the journal, so the run was alive.
        with run.journal_path.open("a") as journal:
            journal.write("".join(lines[60:100]))
        os.utime(run.process_path)
        await until(pilot, lambda: app.state.run.failed is None)
        await until(pilot, lambda: "● training" in text_of(app, "#status"))
        assert "⊘ read-only" in text_of(app, "#notice")


async def test_a_journal_that_cannot_be_read_is_said(tmp_path):
    handle = half_way()
    handle._reader.problem = "[/bold] stale file handle"
    app = make_app("monitor", handle=handle)
    async with app.run_test(size=SIZE) as pilot:
        await at_step(pilot, 33)
        await until(pilot, lambda: "the journal cannot be read at present: [/bold] stale" in text_of(app, "#notice"))


async def test_a_resumed_run_goes_on_where_it_was():
    handle = half_way()
    app = make_app("monitor", handle=handle)
    async with app.run_test(size=SIZE) as pilot:
        await at_step(pilot, 33)
        handle.add(
            RunStarted(model="demo", context=4096, total_steps=60, first_step=20), PhaseChanged(phase="training")
        )
        await until(pilot, lambda: "step 20/60" in text_of(app, "#progress"))
        assert len(app.state.run.history.steps) == 20
        assert "resumed after step 20" in app.state.run.events[-2].text


@pytest.mark.parametrize("size", [(80, 24), (120, 36), (200, 60)])
async def test_all_charts_together_and_one_by_its_digit(size):
    app = make_app("monitor", handle=half_way())
    async with app.run_test(size=size) as pilot:
        await settled(pilot)
        await until(pilot, lambda: app.state.run.step)
        await pilot.press("g")
        charts = {kind.name: app.screen.query_one(f"#grid-{kind.name}", LineChart) for kind in CHARTS}
        await until(pilot, lambda: "4,426" in charts["speed"].plain)
        assert "1.965" in charts["loss"].plain
        assert not any("too small" in chart.plain for chart in charts.values())
        await pilot.press("3")
        await until(pilot, lambda: "norm 1.000" in app.screen.query_one("#chart", LineChart).plain)
        assert not charts["loss"].display or not charts["loss"].size
        await pilot.press("g", "slash")  # the log can be searched only where it is seen
        await until(pilot, lambda: app.screen.query_one(LogPane).size.height > 0)
        assert not app.screen.has_class("-grid")
