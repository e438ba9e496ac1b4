"""What the monitor expects of a run: its end, and its remaining time."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from elite_tui.runs.files import PlannedRun, read_plan
from elite_tui.runs.open_runs import OpenRun
from elite_tui.runs.panels import figures, progress_lines, projected_perplexity
from elite_tui.runs.remaining import remaining
from elite_tui.runs.view import RunView
from engine.protocol.events import CommandAcked, EvalCompleted, PhaseChanged, RunFinished, RunStarted, StepCompleted
from engine.protocol.wire import Envelope
from tests.tui.recording import FOLDER, RUN_ID, START


def view_of(scores, ended=False):
    view = RunView(run_id=RUN_ID)
    events = [
        RunStarted(model="demo", context=64, total_steps=100),
        EvalCompleted(step=0, loss=4.0, perplexity=54.6, tokens=9),
    ]
    for step in range(1, 61):
        events.append(
            StepCompleted(
                step=step,
                total_steps=100,
                epoch=0.1,
                loss=3.0,
                lr=1e-4,
                grad_norm=1.0,
                tokens=1000,
                tokens_per_second=1.0,
            )
        )
        if step % 10 == 0 and step // 10 <= scores:
            events.append(EvalCompleted(step=step, loss=2 + 2 * step**-0.5, perplexity=9.0, tokens=9))
    if ended:
        events.append(RunFinished(status="completed", steps=60, seconds=1.0))
    for number, event in enumerate(events):
        view.apply(Envelope(run=RUN_ID, seq=number, time=START + number, event=event))
    return view


def test_a_projection_is_shown_once_there_are_scores_and_called_one():
    assert projected_perplexity(view_of(3)) == ()
    long, short = projected_perplexity(view_of(6))
    # exp(2 + 2·100^-1/2) is 9.03.
    assert short in ("9.02 projected", "9.03 projected", "9.04 projected", "9.05 projected", "9.01 projected")
    assert long.endswith("projected")
    run = OpenRun(key="k", path=FOLDER, view=view_of(6))
    lines = [line.plain for line in figures(run, (60, 40))]
    assert any(line.startswith("  at the end") and "projected" in line for line in lines)


def test_it_is_gone_when_the_run_has_ended():
    assert projected_perplexity(view_of(6, ended=True)) == ()


def at(time, *events, view=None):
    view = view or RunView(run_id="r")
    for event in events:
        view.apply(Envelope(run="r", seq=view.log_count, time=time, event=event))
    return view


STARTED = RunStarted(model="m", context=1024, total_steps=10, device="cuda")
PROMISED = PlannedRun(
    step_seconds=6.0, phases={"starting": 5.0, "data": 10.0, "model": 15.0, "baseline": 20.0, "evaluation": 30.0}
)
# 60 s of steps and 80 s of phases.


def test_the_remaining_time_counts_the_phases_before_and_after_the_steps():
    view = at(100.0, PhaseChanged(phase="starting"), STARTED)
    at(105.0, PhaseChanged(phase="data"), view=view)
    assert remaining(view, PROMISED, 109.0).seconds == pytest.approx(6 + 15 + 20 + 60 + 30)
    # Longer than promised: the rest is not less than what comes after.
    assert remaining(view, PROMISED, 200.0).seconds == pytest.approx(15 + 20 + 60 + 30)
    at(150.0, PhaseChanged(phase="training"), view=view)
    left = remaining(view, PROMISED, 153.0)
    assert left.seconds == pytest.approx(57 + 30)
    assert left.share == pytest.approx(1 - 87 / 140)


def test_the_parts_of_a_phase_have_their_own_time_and_share_that_of_the_plan():
    view = at(100.0, PhaseChanged(phase="starting"))
    at(101.0, PhaseChanged(phase="starting", detail="loading the libraries"), view=view)
    run = OpenRun(key="k", path=FOLDER, view=view, planned=PROMISED)
    assert "loading the libraries 2.0s · 3.0s of about 5.0s" in progress_lines(run, 120, 103.0)[-1].plain
    at(103.5, PhaseChanged(phase="starting", detail="opening the GPU"), STARTED, view=view)
    assert "opening the GPU 1.0s · 4.5s of about 5.0s" in progress_lines(run, 120, 104.5)[-1].plain
    assert "loading" not in progress_lines(run, 120, 104.5)[-1].plain
    # What is left of the phase does not begin again with each part.
    assert remaining(view, PROMISED, 104.0).seconds == pytest.approx(1 + 10 + 15 + 20 + 60 + 30)
    assert [part.kind for part in view.events].count("phase") == 4
    at(200.0, PhaseChanged(phase="starting"), view=view)  # resumed
    assert "1.0s of about 5.0s" in progress_lines(run, 120, 201.0)[-1].plain
    at(210.0, PhaseChanged(phase="data", detail="reading the repositories"), view=view)
    assert "3.0s of about 10s" in progress_lines(run, 120, 213.0)[-1].plain
    assert "reading" not in progress_lines(run, 120, 213.0)[-1].plain


def test_a_start_after_a_kill_while_paused_is_no_pause():
    pause = CommandAcked(command_id="1", command="Pause", accepted=True)
    view = at(100.0, PhaseChanged(phase="starting"), STARTED, PhaseChanged(phase="training"), pause)
    assert view.state == "paused"
    at(900.0, PhaseChanged(phase="starting"), view=view)
    at(901.0, PhaseChanged(phase="starting", detail="loading the libraries"), view=view)
    assert view.state == "starting"
    run = OpenRun(key="k", path=FOLDER, view=view, planned=PROMISED)
    assert "loading the libraries 2.0s · 3.0s of about 5.0s" in progress_lines(run, 120, 903.0)[-1].plain


def test_a_phase_that_is_entered_twice_without_a_detail_has_no_part():
    view = at(100.0, PhaseChanged(phase="evaluation"))
    at(104.0, PhaseChanged(phase="evaluation"), view=view)
    run = OpenRun(key="k", path=FOLDER, view=view, planned=None)
    assert progress_lines(run, 120, 106.0)[-1].plain.endswith("   6.0s so far")


def test_until_the_data_are_read_the_stages_of_the_plan_tell_the_time(tmp_path):
    """A step of the last stage takes 42 s, and most of the 50 updates less than one: the run is no 35 minutes."""
    stages = [
        {"context": 512, "updates": 42, "seconds": 32.0},
        {"context": 4096, "updates": 4, "seconds": 52.0},
        {"context": 8192, "updates": 4, "seconds": 168.0},
    ]
    around = [{"name": "starting", "seconds": 12.0}, {"name": "saving", "seconds": 3.0}]
    schedule = {"updates": 50, "seconds": 267.0, "stages": stages, "around": around}
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"context": 8192, "step_seconds": 42.0, "schedule": schedule}))
    view = at(100.0, PhaseChanged(phase="starting"), replace(STARTED, total_steps=50))
    assert remaining(view, read_plan(path), 100.0).seconds == pytest.approx(12 + 32 + 52 + 168 + 3)
    for odd in ([], {"stages": 3, "around": "x"}, {"stages": [None, {"seconds": "x"}], "around": [{"name": 4}]}, None):
        path.write_text(json.dumps({"step_seconds": 42.0, "schedule": odd}))
        assert remaining(view, read_plan(path), 100.0).seconds == pytest.approx(50 * 42)


def test_what_the_first_step_takes_besides_is_ahead_until_it_was_taken():
    planned = PlannedRun(step_seconds=6.0, phases={**PROMISED.phases, "first step": 4.0})
    view = at(100.0, STARTED, PhaseChanged(phase="training"))
    assert remaining(view, planned, 100.0).seconds == pytest.approx(60 + 30 + 4)
    assert remaining(view, planned, 100.0).share == pytest.approx(1 - 94 / 144)


def test_after_the_last_step_the_rest_is_what_the_evaluation_takes():
    view = at(100.0, STARTED, PhaseChanged(phase="training"))
    done = StepCompleted(
        step=10,
        total_steps=10,
        epoch=1.0,
        loss=1.0,
        lr=1.0,
        grad_norm=None,
        tokens=1,
        tokens_per_second=1.0,
        seconds=6.0,
        eta_seconds=31.0,
    )
    at(160.0, done, view=view)
    at(160.0, PhaseChanged(phase="evaluation"), view=view)
    run = OpenRun(key="k", path=FOLDER, view=view, planned=PROMISED)
    for now, seconds in ((160.0, 30.0), (172.0, 18.0), (500.0, 0.0)):
        assert remaining(view, PROMISED, now).seconds == pytest.approx(seconds)
    whole, phase = (line.plain for line in progress_lines(run, 120, 172.0))
    assert "ETA 18s" in whole
    assert "100%" not in whole
    assert "12s of about 30s" in phase


def test_short_steps_before_long_ones_are_as_much_of_the_run_as_the_time_that_they_took():
    view = at(100.0, STARTED, PhaseChanged(phase="training"))
    common = {"total_steps": 10, "epoch": 0.5, "loss": 1.0, "lr": 1.0, "grad_norm": None, "tokens": 1}
    for step in range(1, 9):  # of 5 s each, and two of 60 s to come
        left = 5.0 * (8 - step) + 120.0
        done = StepCompleted(step=step, tokens_per_second=1.0, seconds=5.0, eta_seconds=left, **common)
        at(100.0 + 5 * step, done, view=view)
        assert remaining(view, PROMISED, 100.0 + 5 * step).share == pytest.approx(5 * step / 160)
    # Hours between two attempts are no part of it, from the first event of the second one on.
    at(8990.0, PhaseChanged(phase="starting"), view=view)
    found = remaining(view, PROMISED, 8995.0)
    assert found.share == pytest.approx(45 / (45 + found.seconds))
    at(9000.0, replace(STARTED, first_step=8), view=view)
    at(9010.0, PhaseChanged(phase="training"), view=view)
    assert remaining(view, PROMISED, 9010.0).share == pytest.approx(50 / 170)


def test_a_run_without_a_promise_still_has_its_steps():
    view = at(100.0, STARTED, PhaseChanged(phase="training"))
    assert remaining(view, None, 101.0) is None
    assert remaining(view, PlannedRun(step_seconds=6.0), 101.0).seconds == pytest.approx(59.0)
