"""Runs of several ranks through the command line, each in a folder of its own, and of one process to compare with."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from support.session import RecordingSession

from engine.config import from_mapping
from engine.protocol.events import StepCompleted
from engine.recipes.fine_tune import train as train_here
from engine.runs.run_directory import RunDirectory
from engine.runs.run_index import STATE_VARIABLE

REPOSITORY = ("queues.py", "locks.py", "runners.py")
TRAINING = {"context": 128, "tokens_per_update": 512, "evaluate_tokens": 512, "step": "streamed"}
SETTINGS = {"model.device": "cpu", **{f"training.{name}": value for name, value in TRAINING.items()}}


class Call:
    """`engine train --json` as a process, with its events as they come."""

    def __init__(self, arguments, folder, environment):
        self.events = []
        self._seen = threading.Condition()
        self.process = subprocess.Popen(
            arguments, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            with self._seen:
                self.events.append(json.loads(line))
                self._seen.notify_all()

    def wait_for(self, kind, timeout=300, **fields):
        """The first event of a kind with these fields."""

        def found():
            return [e for e in self.events if e["kind"] == kind and all(e.get(k) == v for k, v in fields.items())]

        with self._seen:
            assert self._seen.wait_for(found, timeout), [e["kind"] for e in self.events][-5:]
            return found()[0]

    def finish(self, timeout=300):
        """The exit status; all events are in `events`."""
        status = self.process.wait(timeout)
        self._reader.join(timeout)
        self.process.stdout.close()
        self.error = self.process.stderr.read()
        self.process.stderr.close()
        return status

    def of(self, kind):
        return [event for event in self.events if event["kind"] == kind]

    @property
    def losses(self):
        return [event["loss"] for event in self.of("StepCompleted")]


def repository_in(folder):
    """Makes what the runs of a folder train on."""
    repository = folder / "repository"
    repository.mkdir(exist_ok=True)
    for name in REPOSITORY:
        (repository / name).write_text((Path(asyncio.__file__).parent / name).read_text())
    return repository


def train_alone(folder, **training):
    """Trains without ranks, in this process, with the settings that `train` gives: the losses and the run's folder."""
    config = from_mapping(
        {
            "model": {"name": "demo", "device": "cpu"},
            "data": {"repositories": [str(repository_in(folder))]},
            "training": {**TRAINING, "max_steps": 4, **training},
            "output": {"directory": str(folder / "alone")},
        }
    )
    session = RecordingSession(config=config, run=RunDirectory.create(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(STATE_VARIABLE, str(folder / "state"))
        train_here(session)
    return [event.loss for event in session.of(StepCompleted)], session.run.path


@contextlib.contextmanager
def starting(folder):
    """Starts `engine train` in a folder; ends what is left of it."""
    repository = repository_in(folder)
    environment = {
        **os.environ,
        STATE_VARIABLE: str(folder / "state"),
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",
    }
    calls = []

    def start(*options, steps=4, resume=None, output="out", settings=(), variables=()):
        arguments = [sys.executable, "-m", "engine", "train", "--json", *options]
        if resume is not None:
            arguments += ["--resume", str(resume), "--set", f"training.max_steps={steps}"]
        else:
            arguments += ["--repo", str(repository), "--output", str(folder / output), "--model", "demo"]
            arguments += ["--max-steps", str(steps)]
            for name, value in SETTINGS.items():
                arguments += ["--set", f"{name}={value}"]
        for text in settings:
            arguments += ["--set", text]
        calls.append(Call(arguments, folder, {**environment, **dict(variables)}))
        return calls[-1]

    try:
        yield start
    finally:
        for call in calls:
            if call.process.poll() is None:
                call.process.kill()
                call.finish()


@pytest.fixture
def train(tmp_path):
    """Starts `engine train`; ends what a failing test left."""
    with starting(tmp_path) as start:
        yield start


@pytest.fixture(scope="session")
def alone(tmp_path_factory):
    """Losses and folder of a run in this process with the settings that `train` gives."""
    return train_alone(tmp_path_factory.mktemp("alone"))


def run_folder(tmp_path, output="out"):
    """The only run below an output folder."""
    (found,) = (tmp_path / output / "runs").iterdir()
    return found


def gone(pid, timeout=40.0):
    """Waits until a process has ended."""
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False
