"""Plain lines for screen readers and logs, and the line for a status bar: real processes, terminals and pipes."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from functools import partial

import pytest

from elite_tui.runs.view import RunView
from engine.cli import build_parser
from engine.commands.glance import RunReader, describe, glance
from engine.commands.plain_display import PlainDisplay, spoken_duration
from engine.commands.progress_display import TerminalAlert
from engine.protocol.commands import Stop
from engine.protocol.events import (
    CheckpointSaved,
    EvalCompleted,
    LogLine,
    PhaseChanged,
    RecoveryTaken,
    RunFinished,
    RunStarted,
    StepCompleted,
    StepProgress,
    WarningRaised,
)
from engine.protocol.wire import Envelope
from engine.runs.run_directory import RunDirectory
from engine.runs.run_summary import RunSummary
from tests.runs.conftest import drain
from tests.runs.test_commands import ENGINE, ROOT

DRAWN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2190-\u21ff\u2500-\u259f\u25a0-\u25ff\u2700-\u27bf·…×]")
"""Control characters, arrows, boxes, blocks, shapes and dingbats."""


def step(number, **more):
    return StepCompleted(
        step=number,
        total_steps=60,
        epoch=0.1,
        loss=2.31,
        lr=1e-4,
        grad_norm=1.0,
        tokens=64,
        tokens_per_second=1234.0,
        eta_seconds=130.0,
        **more,
    )


def said(capsys, events, seconds=1.0, every=30.0):
    """What a plain display prints of events, one a second."""
    now = [0.0]
    display = PlainDisplay(every, clock=lambda: now[0])
    for number, event in enumerate(events):
        display.show(Envelope(run="r", seq=number, time=now[0], event=event))
        now[0] += seconds
    return capsys.readouterr().err.splitlines()


def test_a_line_only_for_what_a_person_wants_to_hear(capsys):
    events = [
        PhaseChanged(phase="training", detail="60 steps · windows of 64 → 128"),
        LogLine(level="debug", text="nobody's concern"),
        *(one for n in range(1, 59) for one in (StepProgress(step=n, stage="forward", done=1, total=3), step(n))),
        EvalCompleted(step=58, loss=2.0, perplexity=7.389, tokens=100),
        CheckpointSaved(step=58, path="checkpoints/step-000058", bytes=1),
        RecoveryTaken(what="the step was repeated", why="its loss was not finite"),
        WarningRaised(code="slow-disk", text="the disk is slow", hint="use another"),
        WarningRaised(code="slow-disk", text="the disk is slow", hint="use another"),
        step(60),
    ]
    lines = said(capsys, events)
    assert lines[0] == "training: 60 steps, windows of 64 to 128"
    assert lines[1] == "step 1: forward 1 of 3"
    assert [line for line in lines if line.startswith("step ") and "loss" not in line][1:] == [
        f"step {n}: forward 1 of 3" for n in (16, 31, 46)
    ]
    assert lines[-5:] == [
        "held-out perplexity 7.389 at step 58",
        "checkpoint checkpoints/step-000058",
        "recovered: the step was repeated (its loss was not finite)",
        "warning: the disk is slow; use another",
        "step 60 of 60, loss 2.310, 1,234 tokens a second, 2 minutes 10 seconds left",
    ]
    assert not any(DRAWN.search(line) for line in lines)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "0 seconds"),
        (1, "1 second"),
        (61, "1 minute 1 second"),
        (3600, "1 hour"),
        (7261, "2 hours 1 minute"),
        (90_000, "1 day 1 hour"),
    ],
)
def test_durations_are_spoken(seconds, words):
    assert spoken_duration(seconds) == words


def test_the_end_is_one_thing_a_line(capsys, tmp_path):
    display = PlainDisplay()
    done = RunFinished(
        status="completed", steps=60, seconds=125.0, adapter="adapter", perplexity_before=60.34, perplexity_after=6.611
    )
    display.finish(RunDirectory(tmp_path), done)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "completed 60 steps in 2 minutes 5 seconds"
    assert lines[1] == "held-out perplexity 60.340 before, 6.611 after (-89.0%)"
    assert lines[2] == f"adapter {tmp_path}/adapter"
    assert not any(DRAWN.search(line) or "  " in line for line in lines)


@pytest.mark.parametrize(("steps", "words"), [(1, "1 step"), (2, "2 steps")])
def test_one_step_is_no_plural(capsys, tmp_path, steps, words):
    display, view = PlainDisplay(), RunView(run_id="r")
    started = RunStarted(model="demo", context=64, total_steps=steps, device="cpu")
    done = RunFinished(status="completed", steps=steps, seconds=5.0)
    for number, event in enumerate((started, done)):
        envelope = Envelope(run="r", seq=number, time=0.0, event=event)
        display.show(envelope)
        view.apply(envelope)
    display.finish(RunDirectory(tmp_path), done)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith(f", {words}, on cpu")
    assert lines[1] == f"completed {words} in 5 seconds"
    assert view.log[-1].text == f"run completed after {words}"


def test_every_says_how_often_a_step_is_told(launch):
    handle = launch("trouble")
    drain(handle)
    handle.wait_exit(30)
    told = []
    for seconds in ("0", "3600"):
        command = [*ENGINE, "attach", handle.run.id, "--every", seconds]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
        told.append([line for line in done.stderr.splitlines() if re.match(r"step \d+ of 5, loss", line)])
    every, few = told
    assert {line.split(",")[0] for line in every} == {f"step {n} of 5" for n in range(1, 6)}
    assert len(few) < len(every)
    assert few[-1].startswith("step 5 of 5")


@pytest.mark.parametrize(("command", "option"), [("attach", "--every"), ("train", "--every"), ("stop", "--timeout")])
@pytest.mark.parametrize("value", ["soon", "-1", "nan", "inf"])
def test_a_wrong_number_of_seconds_is_said_in_the_user_s_words(capsys, command, option, value):
    with pytest.raises(SystemExit) as caught:
        build_parser().parse_args([command, *(["run"] if command == "stop" else []), f"{option}={value}"])
    assert caught.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"argument {option}: {value} is not" in last
    assert "_seconds" not in last


def in_terminal(*arguments, until=None, then=None):
    """Runs a command in a terminal of its own, and returns its status and what reached the terminal.

    Once the terminal shows `until`, calls `then`, or interrupts the command.
    """
    primary, secondary = pty.openpty()
    process = subprocess.Popen(
        [*ENGINE, *arguments], cwd=ROOT, stdout=secondary, stderr=secondary, env=os.environ | {"TERM": "xterm"}
    )
    os.close(secondary)
    output, deadline = b"", time.monotonic() + 60
    while time.monotonic() < deadline:
        ready, _, _ = select.select([primary], [], [], 0.1)
        if ready:
            try:
                output += os.read(primary, 4096)
            except OSError:
                break
        if until is not None and until in output:
            until = None
            (then or partial(process.send_signal, signal.SIGINT))()
    status = process.wait(timeout=20)
    os.close(primary)
    return status, output.decode()


def test_attach_in_a_terminal_prints_lines_that_move_nothing(launch):
    handle = launch("trouble")
    drain(handle)
    handle.wait_exit(30)
    status, text = in_terminal("attach", handle.run.id, "--plain")
    assert status == 0
    lines = text.replace("\r\n", "\n").splitlines()
    assert not [line for line in lines if DRAWN.search(line)]
    assert any(line.startswith("recovered: the step was repeated") for line in lines)
    assert any(line.startswith("step 5 of 5, loss ") for line in lines)
    assert "held-out perplexity 7.389 before, 4.480 after (-39.4%)" in lines
    _, drawn = in_terminal("attach", handle.run.id)
    assert "\x1b[" in drawn  # the other display does move the cursor


def test_a_terminal_is_notified_of_what_happens_now_and_not_of_history(capsys, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    for name in ("TMUX", "VTE_VERSION"):
        monkeypatch.delenv(name, raising=False)
    alert = TerminalAlert()
    done = RunFinished(status="completed", steps=5, seconds=1.0)
    alert.show(Envelope(run="r", seq=0, time=time.time() - 3600, event=done))
    assert capsys.readouterr().err == ""
    alert.show(Envelope(run="r", seq=0, time=time.time() + 1, event=done))
    assert capsys.readouterr().err == "\x1b]9;Elite TUI: r completed: 5 steps\x1b\\\a"


def test_the_notification_of_a_run_s_end_reaches_the_terminal_as_it_is(launch, monkeypatch):
    for name in ("TMUX", "VTE_VERSION", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    handle = launch(steps=500)
    drain(handle, lambda envelope: isinstance(envelope.event, StepCompleted))
    run = handle.run.id

    def stop_once_it_is_watched():
        handle.send(Stop(id="1"))

    status, drawn = in_terminal("attach", run, until=b"training", then=stop_once_it_is_watched)
    assert status == 130
    assert drawn.count(f"\x1b]9;Elite TUI: {run} stopped: ") == 1
    assert drawn.count("]9;") == 1


# --- the line for a status bar ---------------------------------------------------------------------------------


def summary(status="running", **more):
    values = {
        "id": "20260101-000000-shop-aaaa",
        "path": ROOT,
        "status": status,
        "model": "demo",
        "model_name": "shop",
        "context": 64,
        "step": 34,
        "total_steps": 60,
        "loss": 2.31,
        "perplexity_before": 60.34,
        "perplexity_after": None,
        "started": 0.0,
        "updated": 1000.0,
        "phase": "training",
        "eta_seconds": 130.0,
    }
    return RunSummary(**{**values, **more})


@pytest.mark.parametrize(
    ("run", "now", "line"),
    [
        (summary(), 1010.0, "shop training 34/60, loss 2.310, 2m left"),
        (summary(), 5000.0, "shop training 34/60, loss 2.310, no news for 1h 6m"),
        (summary("paused"), 5000.0, "shop paused 34/60, loss 2.310, 2m 10s left"),
        (summary("starting", step=0, loss=None, eta_seconds=None, total_steps=None), 1001.0, "shop starting"),
        (summary("completed", step=60, perplexity_after=6.611), 9e9, "shop completed 60/60, perplexity 60.34 → 6.611"),
        (summary("died", loss=None), 9e9, "shop died 34/60"),
        (summary(model_name="#[bg=red]\x1b[31m"), 1000.0, "[bg=red]\\x1b[31m training 34/60, loss 2.310, 2m 10s left"),
    ],
)
def test_a_run_in_one_line(run, now, line):
    assert describe(run, now) == line


def test_the_newest_run_that_trains_is_told_of_and_the_others_counted():
    ended, first, second = summary("completed"), summary(id="1"), summary(id="2")
    found = glance([ended, first, second], 1000.0)
    assert (found["run"], found["active"], found["class"]) == ("1", 2, "running")
    assert found["text"].endswith("(+1)")
    assert glance([ended], 1000.0)["class"] == "completed"
    assert glance([], 1000.0)["text"] == "no runs"


def test_once_for_tmux_and_as_json(launch):
    def once(*more):
        return subprocess.run(
            [*ENGINE, "runs", "--glance", *more], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
        ).stdout

    assert once() == "no runs\n"
    handle = launch("ok")
    drain(handle)
    handle.wait_exit(30)
    assert once() == "ok completed 5/5, perplexity 7.389 → 4.48\n"
    found = json.loads(once("--json"))
    assert (found["run"], found["class"], found["step"], found["loss"]) == (handle.run.id, "completed", 5, 0.4)


def test_ended_runs_are_read_once_and_again_when_they_change(launch, tmp_path):
    handle = launch("ok")
    drain(handle)
    handle.wait_exit(30)
    reader = RunReader()
    first = reader.read(None)
    assert reader.read(None)[0] is first[0]
    os.utime(handle.run.journal_path, (1, 1))
    assert reader.read(None)[0] is not first[0]


def test_watching_a_run_in_a_terminal_rewrites_one_line_and_ends_on_ctrl_c(launch):
    handle = launch("ok", steps=100)
    drain(handle, until=lambda one: isinstance(one.event, StepCompleted))
    status, text = in_terminal("runs", "--watch", until=b"completed")
    assert status == 0
    assert "Traceback" not in text
    lines = text.split("\r")
    assert all(line.endswith("\x1b[K") for line in lines[1:-1])
    assert text.count("\n") == 1  # only at the end
    assert len(lines) >= 3
    assert lines[-2].startswith("ok completed 100/100")
    assert "\x1b[2J" not in text


@pytest.mark.parametrize("as_json", [False, True])
def test_watching_ends_when_its_reader_has_gone_even_while_nothing_happens(launch, as_json):
    handle = launch("ok")
    drain(handle)
    handle.wait_exit(30)
    process = subprocess.Popen(
        [*ENGINE, "runs", "--watch", *(["--json"] if as_json else [])],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    line = process.stdout.readline()
    assert (json.loads(line)["text"] if as_json else line.strip()).startswith("ok completed 5/5")
    process.stdout.close()
    assert process.wait(timeout=30) == 0
    assert process.stderr.read() == ""
    process.stderr.close()


def test_a_signal_ends_it_in_a_pipe_too(launch):
    handle = launch("ok")
    drain(handle)
    process = subprocess.Popen([*ENGINE, "runs", "--watch"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, b"")
