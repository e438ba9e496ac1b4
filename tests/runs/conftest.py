"""A state folder and an output folder of their own for every test."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine import config as run_config
from engine.launch import launcher
from engine.runs.run_index import STATE_VARIABLE
from tests.runs import recipes


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    """The index of runs of one test."""
    monkeypatch.setenv(STATE_VARIABLE, str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def make_config(tmp_path):
    """A configuration whose model name chooses what the short recipe does."""

    def make(mode="ok", steps=5, output=None):
        return run_config.from_mapping(
            {
                "training": {"max_steps": steps},
                "output": {"directory": str(output or tmp_path / "out"), "model_name": mode},
            }
        )

    return make


@pytest.fixture
def launch(make_config):
    """Launches the short recipe in a real process; ends what a failing test left running."""
    handles = []

    def start(mode="ok", steps=5, *, output=None, resume=None):
        config = resume.load_config() if resume else make_config(mode, steps, output)
        handle = launcher.launch(config, resume=resume, recipe=recipes.PATH)
        handles.append(handle)
        return handle

    yield start
    for handle in handles:
        process = handle._process
        if process.exitcode is None:
            process.kill()
        process.join()
        handle.close()


def drain(handle, until=lambda envelope: False):
    """Every event up to the end of the run, or up to one for which `until` is true."""
    envelopes = []
    while handle.ending is None:
        new = handle.poll()
        envelopes += new
        if any(until(envelope) for envelope in new):
            break
        time.sleep(0.01)
    return envelopes


def run_alone(code, *arguments):
    """What a few lines print in a process of their own, for what would spoil this one: limits, another user.

    A fork would do only in a process without threads, and the test runner has some.
    """
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
