"""What a run says from the start of its process to its first step: real processes, and the journals that they leave."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import pytest
from rich.console import Console

from engine.commands.progress_display import LiveDisplay
from engine.launch import launcher
from engine.launch.handle import RunHandle
from engine.launch.recipe_import import LOADING
from engine.protocol.events import PHASES, PhaseChanged, RunFailed, RunFinished, RunStarted, StepCompleted
from engine.protocol.wire import Envelope, decode_event
from engine.runs.journal import JournalReader
from engine.runs.run_directory import RunDirectory
from engine.runs.run_summary import read_summary
from tests.runs.conftest import drain

ROOT = Path(__file__).parents[2]
SLOW = {"torch", "transformers", "peft", "accelerate", "bitsandbytes", "numpy", "safetensors", "tokenizers"}


def events_of(run):
    reader = JournalReader(run.journal_path)
    envelopes = reader.poll()
    assert reader.damaged == 0
    assert [envelope.seq for envelope in envelopes] == sorted({envelope.seq for envelope in envelopes})
    return [envelope.event for envelope in envelopes]


def test_a_run_says_what_it_does_before_anything_slow_is_imported(make_config, tmp_path, monkeypatch):
    monkeypatch.setenv("OUTPUT", str(tmp_path / "out"))
    handle = launcher.launch(make_config(), recipe="tests.runs.journal_at_import:train")
    shown = drain(handle)
    handle.wait_exit(60)
    handle.close()
    (line,) = [line for line in handle.run.log_path.read_text().splitlines() if line.startswith("{")]
    seen = json.loads(line)
    assert SLOW & set(seen["modules"]) == set()
    journalled = [decode_event(line).event for line in seen["journal"]]
    assert journalled == [PhaseChanged(phase="starting"), PhaseChanged(phase="starting", detail=LOADING)]
    assert [envelope.event for envelope in shown[:2]] == journalled


def test_a_run_is_planned_without_anything_slow(tmp_path):
    for name in "abcdef":
        (tmp_path / f"{name}.py").write_text("def f():\n    return 1\n" * 500)
    code = "import sys\ntry: import engine.__main__\nfinally: print(*sys.modules)"
    arguments = ["train", "--dry-run", "--model", "demo", "--repo", tmp_path, "--output", tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT, check=True
    )
    imported = set(done.stdout.splitlines()[-1].split())
    assert "engine.plan.choice" in imported
    assert SLOW & imported == set()


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Runs of the real recipe, killed at one phase or part later each; the last one is complete."""
    folder = tmp_path_factory.mktemp("killed")
    done = subprocess.run(
        [sys.executable, "-m", "tests.runs.killed_starts", str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [one["status"] for one in found] == [-9] * (len(found) - 1) + [0]
    return [RunDirectory.open(Path(one["run"])) for one in found]


def test_phases_and_their_parts_come_in_order(killed):
    events = events_of(killed[-1])
    phases = [event for event in events if isinstance(event, PhaseChanged)]
    assert [phase for phase, _ in groupby(event.phase for event in phases)] == list(PHASES)
    assert [event.begins_attempt for event in phases] == [True] + [False] * (len(phases) - 1)
    assert [event.detail for event in phases if event.phase == "starting"] == [
        "",
        "loading the libraries",
        "measuring the files and choosing the plan",
        "checking the model's files",
    ]
    # Every phase before the first step says what it does.
    until = next(index for index, event in enumerate(events) if isinstance(event, StepCompleted))
    assert [event for event in events[1:until] if isinstance(event, PhaseChanged) and not event.detail] == []
    assert isinstance(events[-1], RunFinished)


def test_a_run_killed_in_any_phase_reads_well(killed):
    whole = [event for event in events_of(killed[-1]) if isinstance(event, PhaseChanged)]
    assert len(killed) == len(whole) - 1  # one kill at each after the first two, and the run without
    for count, run in enumerate(killed[:-1], start=3):
        events = events_of(run)
        phases = [event for event in events if isinstance(event, PhaseChanged)]
        assert [(event.phase, event.detail) for event in phases] == [(e.phase, e.detail) for e in whole[:count]]
        summary = read_summary(run)
        assert (summary.status, summary.phase) == ("died", phases[-1].phase)
        assert summary.context == (128 if any(isinstance(event, RunStarted) for event in events) else None)
        assert_replayed_as_dead(run, events)


def test_a_run_killed_while_it_imports_reads_well(make_config, tmp_path, monkeypatch):
    monkeypatch.setenv("OUTPUT", str(tmp_path / "out"))
    monkeypatch.setenv("KILLED", "1")
    handle = launcher.launch(make_config(), recipe="tests.runs.journal_at_import:train")
    drain(handle)
    handle.wait_exit(60)
    handle.close()
    events = events_of(handle.run)
    assert events == [PhaseChanged(phase="starting"), PhaseChanged(phase="starting", detail=LOADING)]
    assert (read_summary(handle.run).status, read_summary(handle.run).phase) == ("died", "starting")
    assert_replayed_as_dead(handle.run, events)


def test_the_display_of_a_terminal_names_each_phase_and_part_with_its_own_clock():
    display = LiveDisplay(Console(file=io.StringIO(), width=100))
    clocks, lines = [], []
    for number, event in enumerate(
        [
            PhaseChanged(phase="starting"),
            PhaseChanged(phase="starting", detail="loading the libraries"),
            PhaseChanged(phase="data", detail="reading \x1b[2Jthe repositories " + "x" * 200),
            PhaseChanged(phase="training", detail="3 steps"),
            PhaseChanged(phase="training", detail="stage 1 of 2"),
        ]
    ):
        display.show(Envelope(run="r", seq=number, time=float(number), event=event))
        out = io.StringIO()
        Console(file=out, width=100).print(display.progress)
        lines.append(out.getvalue())
        (task,) = display.progress.tasks
        clocks.append(task.start_time)
    assert len(set(clocks)) == 4  # the stages of training share one
    assert [line.split()[0] for line in lines] == ["starting", "starting", "data", "training", "training"]
    assert "loading the libraries" in lines[1]
    assert "reading" in lines[2]
    assert "\x1b" not in lines[2]
    assert ["0:00:0" in line for line in lines] == [True] * 5  # no text pushes it off the line


def assert_replayed_as_dead(run, events):
    """Asserts what somebody sees who attaches to the run afterwards."""
    replayed = [envelope.event for envelope in drain(RunHandle.attach(run))]
    assert replayed[:-1] == events
    assert isinstance(replayed[-1], RunFailed)
    assert replayed[-1].error == "child-died"


def test_the_display_of_a_terminal_breaks_lines_between_words_and_no_path():
    out = io.StringIO()
    path = "/home/me/" + "long/" * 20 + "adapter"
    LiveDisplay(Console(file=out, width=40, force_terminal=True)).say(f"{'word ' * 12}at {path} :bug:")
    lines = out.getvalue().splitlines()
    assert [line.split() for line in lines] == [["word"] * 8, ["word"] * 4 + ["at"], [path], [":bug:"]]
