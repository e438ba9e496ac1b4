"""Progress, events and log of the monitor."""

from __future__ import annotations

import json
import os

from textual.widgets import Input

from elite_tui.state_part import StatePart
from elite_tui.widgets.event_list import EventList
from elite_tui.widgets.log_pane import LogPane
from engine.launch.handle import RunHandle
from engine.protocol.events import (
    LogLine,
    RecoveryTaken,
    RunFailed,
    StepProgress,
    WarningRaised,
)
from engine.runs.process_record import ProcessRecord, write_record
from tests.tui.recording import RUN_ID, START, recorded
from tests.tui.support import (
    at_step,
    copy_recording,
    half_way,
    make_app,
    settled,
    text_of,
    until,
)

SIZE = (120, 36)


def rows_of(pane):
    return [f"{row.gutter}{row.text}" for row in pane.rows]


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
