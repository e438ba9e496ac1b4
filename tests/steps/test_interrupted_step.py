"""A stop in the middle of a long step, in a real process: half a minute is enough, and the step goes on afterwards."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

SPOT_NOTICE_SECONDS = 30.0


@pytest.fixture
def long_run(tmp_path):
    """Starts, or goes on with, a run of two steps of 16K tokens, streamed: each takes many seconds on a CPU."""
    repository = tmp_path / "repository"
    repository.mkdir()
    for path in sorted(Path(os.__file__).parent.glob("*.py"))[:12]:
        shutil.copy(path, repository)
    settings = {
        "training.context": 16384,
        "training.step": "streamed",
        "training.evaluate_tokens": 64,
        "checkpoint.every_minutes": 0.05,
    }
    options = ["--repo", str(repository), "--output", str(tmp_path / "out"), "--model", "demo", "--max-steps", "2"]
    for key, value in settings.items():
        options += ["--set", f"{key}={value}"]
    readers = []
    environment = {
        **os.environ,
        "ELITE_TUI_STATE_DIR": str(tmp_path / "state"),
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "2",
    }

    def start(*extra, fresh=True):
        arguments = [sys.executable, "-m", "engine", "train", "--json", *extra, *(options if fresh else [])]
        with (tmp_path / "stderr").open("w") as errors:
            process = subprocess.Popen(
                arguments, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        events = []

        def read():
            with process.stdout:
                for line in process.stdout:
                    events.append(json.loads(line))  # noqa: PERF401 - read while it grows

        reader = threading.Thread(target=read)
        reader.start()
        readers.append(reader)
        return process, events

    yield start
    for reader in readers:
        reader.join()


def until(condition, seconds=150):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["forward", "backward"])
def test_a_spot_notice_in_the_middle_of_a_step_is_enough(long_run, stage):
    process, events = long_run()
    until(lambda: any(e["kind"] == "StepProgress" and e["stage"] == stage and e["done"] > 2 for e in events))
    message = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(SPOT_NOTICE_SECONDS) == 130
    assert time.monotonic() - message < SPOT_NOTICE_SECONDS
    kinds = [event["kind"] for event in events]
    assert "CheckpointSaved" in kinds
    until(lambda: events[-1]["kind"] == "RunFinished")
    assert events[-1]["status"] == "stopped"
    in_step = [e for e in events if e["kind"] == "LogLine" and "saved within the step" in e["text"]]
    assert bool(in_step) == (stage == "backward")

    process, events = long_run("--resume", fresh=False)
    assert process.wait(280) == 0
    until(lambda: events[-1]["kind"] == "RunFinished")
    recovered = [e for e in events if e["kind"] == "RecoveryTaken"]
    assert bool(recovered) == (stage == "backward")
