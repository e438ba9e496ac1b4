"""A run from launch to its end, in a real process."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path

import pytest

from engine.errors import INTERRUPTED, EliteError
from engine.errors.runs import RUN_STILL_ACTIVE
from engine.hardware import limits
from engine.launch.handle import RunHandle
from engine.protocol.commands import EvaluateNow, Pause, Resume, SaveNow, Stop
from engine.protocol.events import CommandAcked, RunFailed, StepCompleted, StepProgress
from engine.runs import process_record
from engine.runs.journal import JournalReader
from tests.runs.conftest import drain


def is_step(number):
    return lambda envelope: isinstance(envelope.event, StepCompleted) and envelope.event.step >= number


def test_a_run_completes_and_every_event_arrives_once(launch):
    handle = launch()
    assert handle.run.config_path.exists()
    envelopes = drain(handle)
    assert handle.ending.status == "completed"
    seqs = [envelope.seq for envelope in envelopes]
    assert seqs == sorted(set(seqs))
    journal = JournalReader(handle.run.journal_path).poll()
    kept = [e for e in envelopes if not isinstance(e.event, StepProgress)]
    assert kept == [e for e in journal if not isinstance(e.event, StepProgress)]
    assert handle.wait_exit(30)
    assert handle._process.exitcode == 0
    assert handle.status() == "completed"
    assert "text on stdout" in handle.run.log_path.read_text()
    assert not handle.run.socket_path.exists()


def test_attach_to_a_finished_run_replays_it(launch):
    handle = launch()
    live = drain(handle)
    attached = RunHandle.attach(handle.run)
    replayed = drain(attached)
    assert replayed == [e for e in live if not isinstance(e.event, StepProgress) or e in replayed]
    assert attached.ending == handle.ending
    assert attached.poll() == []


def test_stop_saves_and_resume_goes_on_with_the_numbering(launch):
    handle = launch(steps=500)
    drain(handle, is_step(2))
    handle.send(Stop(id="s1"))
    first = drain(handle)
    assert any(isinstance(e.event, CommandAcked) and e.event.command_id == "s1" for e in first)
    assert handle.ending.status == "stopped"
    assert handle.wait_exit(30)
    assert handle._process.exitcode == INTERRUPTED

    resumed = launch(resume=handle.run)
    drain(resumed, is_step(handle.ending.steps + 1))
    assert resumed.status() == "running"
    resumed.send(Stop(id="s2", save=False))
    drain(resumed)
    journal = [e.seq for e in JournalReader(handle.run.journal_path).poll()]
    assert journal == sorted(set(journal))
    assert resumed.first_seq > 0
    assert handle.poll()[-1].event == resumed.ending


def test_pause_holds_until_resume(launch):
    handle = launch(steps=500)
    drain(handle, is_step(1))
    handle.send(Pause(id="p"))
    drain(handle, lambda e: isinstance(e.event, CommandAcked) and e.event.command_id == "p")
    assert handle.status() == "paused"
    handle.send(Resume(id="r"))
    drain(handle, is_step(3))
    assert handle.status() == "running"
    handle.send(SaveNow(id="n"))
    handle.send(EvaluateNow(id="e"))
    handle.send(Stop(id="s", save=False))
    acks = {e.event.command_id: e.event.accepted for e in drain(handle) if isinstance(e.event, CommandAcked)}
    assert acks == {"n": True, "e": False, "s": True}


@pytest.mark.parametrize(
    ("mode", "code", "status"),
    [("crash", "internal", 4), ("refuse", "repository-empty", 2), ("full", "output-full", 4)],
)
def test_a_failure_is_the_last_event(launch, mode, code, status):
    handle = launch(mode)
    drain(handle)
    assert isinstance(handle.ending, RunFailed)
    assert (handle.ending.error, handle.ending.exit_code) == (code, status)
    assert handle.ending.message.isprintable()
    assert handle.wait_exit(30)
    assert handle._process.exitcode == status
    assert handle.status() == "failed"


@pytest.mark.parametrize("attached", [False, True])
def test_a_process_that_vanishes_is_reported_with_the_end_of_its_log(launch, attached):
    launched = launch("vanish")
    handle = RunHandle.attach(launched.run) if attached else launched
    events = drain(handle)
    assert handle.ending.error == "child-died"
    assert handle.ending.traceback.endswith("the last words\n")
    assert ("exit status 77" in handle.ending.message) is not attached
    assert events[-1].event is handle.ending
    assert handle.poll() == []
    assert handle.status() == "died"


@pytest.mark.parametrize("attached", [False, True])
def test_a_process_that_the_kernel_ended_for_want_of_memory_is_told_so(launch, tmp_path, attached):
    """The kernel's counter is planted: its own killer would end the tests."""
    launched = launch("hang")
    drain(launched, is_step(2))
    counter = tmp_path / "memory.events"
    counter.write_text("low 0\nhigh 3\nmax 12\noom 4\noom_kill 3\n")
    record = process_record.read_record(launched.run.process_path)
    assert record.oom_kills == (limits.read_oom_kills(Path(record.oom_counter)) if record.oom_counter else 0)
    planted = dataclasses.replace(record, oom_counter=str(counter), oom_kills=2)
    process_record.write_record(launched.run.process_path, planted)
    handle = RunHandle.attach(launched.run) if attached else launched
    os.kill(record.pid, signal.SIGKILL)
    drain(handle)
    assert "the kernel ended it because memory ran out" in handle.ending.message


def test_kill_9_is_reported_and_the_run_can_be_launched_again(launch):
    handle = launch("hang")
    drain(handle, is_step(2))
    os.kill(handle._process.pid, signal.SIGKILL)
    drain(handle)
    assert "SIGKILL" in handle.ending.message
    assert handle.run.socket_path.exists()
    (handle.run.checkpoints_path / "step-000002").mkdir(parents=True)
    resumed = launch(resume=handle.run)
    drain(resumed)
    assert resumed.ending.status == "completed"
    assert drain(RunHandle.attach(handle.run))[-1].event == resumed.ending


def test_a_run_is_never_trained_by_two_processes(launch):
    handle = launch("hang")
    with pytest.raises(EliteError) as caught:
        launch(resume=handle.run)
    assert caught.value.kind is RUN_STILL_ACTIVE


def test_threads_of_the_training_process_wait_briefly(launch, monkeypatch):
    """Also where its launcher is the app, which computes nothing and sets nothing."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    handle = launch()
    drain(handle)
    assert "threads spin 3000 rounds" in handle.run.log_path.read_text()
