"""Folding a run from its events."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from elite_tui.runs.followed import News
from elite_tui.runs.open_runs import OpenRun
from elite_tui.runs.panels import notice_line
from elite_tui.runs.view import RunView
from engine.protocol.events import (
    CommandAcked,
    PhaseChanged,
    RankReported,
    RunFailed,
    RunStarted,
    StepCompleted,
    StepProgress,
    UnknownEvent,
)
from engine.protocol.wire import Envelope
from tests.tui.recording import RUN_ID, STEPS, record, recorded


def fold(*events, view=None):
    view = view or RunView()
    for event in events:
        view.apply(Envelope(run="r", seq=view.log_count, time=1.0, event=event))
    return view


def completed(step):
    return StepCompleted(
        step=step, total_steps=9, epoch=0.1, loss=1.0, lr=1.0, grad_norm=None, tokens=1, tokens_per_second=1.0
    )


def test_the_recording_on_disk_is_the_one_in_code():
    assert recorded() == record()


def test_a_whole_run():
    view = RunView()
    for envelope in recorded():
        view.apply(envelope)
    assert view.run_id == RUN_ID
    assert view.state == "completed"
    assert view.ended
    steps = view.history.steps
    assert len(steps) == STEPS
    assert steps["step"][24] == 25
    assert math.isnan(steps["loss"][24])
    assert steps["tokens"][-1] == STEPS * 8192
    assert steps["time"][-1] == pytest.approx(126.1)
    assert list(view.history.held_out["step"]) == [0, 20, 40, 60]
    assert view.first_evaluation.perplexity == 60.34
    assert view.checkpoint.step == 60
    assert (view.warnings, view.recoveries) == (1, 1)


def test_a_resumption_forgets_the_steps_that_it_repeats():
    failed = RunFailed(error="x", message="m", hint="h", exit_code=4)
    view = fold(*(completed(step) for step in range(1, 6)), failed)
    assert view.state == "failed"
    fold(RunStarted(model="demo", context=64, total_steps=9, first_step=3), view=view)
    assert not view.ended
    assert list(view.history.steps["step"]) == [1, 2, 3]
    assert view.done_steps == 3


@pytest.mark.parametrize("event", [PhaseChanged(phase="data"), RunStarted(model="m", context=1, total_steps=1)])
def test_an_end_is_not_the_end_of_a_run_that_goes_on(event):
    view = fold(RunFailed(error="child-died", message="m", hint="h", exit_code=4), event)
    assert not view.ended


def test_pause_and_resume():
    view = fold(CommandAcked(command_id="1", command="Pause", accepted=True))
    assert view.state == "paused"
    fold(CommandAcked(command_id="2", command="Resume", accepted=True), view=view)
    assert view.state == "starting"
    fold(CommandAcked(command_id="3", command="Pause", accepted=False, text="already"), view=view)
    assert not view.paused


def test_stopping_until_it_is_answered():
    view = fold(PhaseChanged(phase="training"))
    view.pending["7"] = "Stop"
    assert view.state == "stopping"
    fold(CommandAcked(command_id="7", command="Stop", accepted=True), view=view)
    assert view.state == "training"


def test_progress_ends_with_its_step():
    view = fold(StepProgress(step=1, stage="forward", done=1, total=2))
    assert view.progress is not None
    assert fold(completed(1), view=view).progress is None


def test_the_log_is_bounded_and_knows_events_of_the_future():
    view = fold(UnknownEvent(name="Teleported", body={}))
    assert view.log[-1].text == "event Teleported"
    fold(*(PhaseChanged(phase=str(number)) for number in range(6000)), view=view)
    assert len(view.log) == 5000
    assert view.log_count == 6001


def test_each_rank_has_its_latest_report_until_the_run_begins_anew():
    reports = [RankReported(rank=rank, step=step, seconds=step / 10) for step in (1, 2) for rank in (0, 1)]
    view = fold(RunStarted(model="demo", context=64, total_steps=5), *reports)
    assert {rank: report.step for rank, report in view.ranks.items()} == {0: 2, 1: 2}
    assert fold(RunStarted(model="demo", context=64, total_steps=5, first_step=2), view=view).ranks == {}


def test_a_phase_is_drawn_without_its_escapes():
    assert fold(PhaseChanged(phase="data\x1b]0;x\x07")).state == "data\\x1b]0;x\\x07"


def news(first, last, *, behind, glance=()):
    events = [Envelope(run="r", seq=step, time=float(step), event=completed(step)) for step in range(first, last)]
    return News(events, behind=behind, glance=glance, share=last / 9)


def test_a_long_journal_is_shown_by_its_ends_until_it_is_read():
    run = OpenRun(key="r", path=Path("r"), view=RunView(run_id="r"))
    ends = [Envelope(run="r", seq=step, time=float(step), event=completed(step)) for step in (1, 8)]
    run.take(news(1, 4, behind=True, glance=ends))
    assert run.view.done_steps == 8
    assert list(run.view.history.steps["step"]) == [1, 8]
    assert "44%" in notice_line(run, 9.0).plain
    run.view.pending["command"] = "Pause"
    run.take(news(4, 7, behind=True))
    assert list(run.view.history.steps["step"]) == [1, 8]
    run.take(news(7, 9, behind=False))
    assert list(run.view.history.steps["step"]) == list(range(1, 9))
    assert run.view.history.tokens == 8
    assert run.view.pending == {"command": "Pause"}
    assert notice_line(run, 9.0) is None
    run.take(news(9, 10, behind=False))
    assert run.view.done_steps == 9


def test_a_run_in_a_renamed_directory_is_shown():
    run = OpenRun(key="k", path=Path("renamed"), view=RunView(run_id="renamed"))
    run.take(news(1, 4, behind=False))
    assert run.view.done_steps == 3
    stranger = Envelope(run="another", seq=9, time=9.0, event=completed(9))
    run.take(News([stranger]))
    assert run.view.done_steps == 3
