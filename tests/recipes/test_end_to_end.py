"""`engine train` with the real process and the real recipe: to the end, and interrupted and continued."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest


@pytest.fixture
def call(tmp_path):
    repository = tmp_path / "repository"
    repository.mkdir()
    for name in ("queues.py", "locks.py", "runners.py"):
        (repository / name).write_text((Path(asyncio.__file__).parent / name).read_text())
    environment = {
        **os.environ,
        "ELITE_TUI_STATE_DIR": str(tmp_path / "state"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    new_run = ["--repo", str(repository), "--output", str(tmp_path / "out"), "--model", "demo", "--max-steps", "6"]
    # Few updates: at the rate of a whole run they would not lower the perplexity yet.
    settings = ("context=128", "tokens_per_update=512", "evaluate_tokens=512", "learning_rate=0.0005")
    for text in (f"training.{setting}" for setting in settings):
        new_run += ["--set", text]

    def start(*options, fresh=True):
        arguments = [sys.executable, "-m", "engine", "train", "--json", *options, *(new_run if fresh else [])]
        return subprocess.Popen(
            arguments, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return start


def finish(process):
    out, err = process.communicate(timeout=200)
    return [json.loads(line) for line in out.splitlines()], err


def interrupt_after_a_step(process):
    """Its events, once a Ctrl-C has ended it."""
    events = []
    reached = threading.Event()

    def read():
        for line in process.stdout:
            events.append(json.loads(line))
            if events[-1]["kind"] == "StepCompleted":
                reached.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert reached.wait(200), process.stderr.read()
    process.send_signal(signal.SIGINT)
    reader.join(200)
    assert process.wait(60) == 130
    process.stdout.close()
    process.stderr.close()
    return events


ASKED = {
    "weights": "streamed",
    "kv_home": "host",
    "hidden_home": "disk",
    "stash": False,
    "checkpoint_every": 2,
    "tile": 48,
    "key_block": 80,
    "loss_piece": 32,
    "attention": "cpu",
}


def layouts(tmp_path):
    """The streamed plans that the checkpoints were computed with, in the order of their steps."""
    (run,) = (tmp_path / "out" / "runs").iterdir()
    states = [json.loads(path.read_text()) for path in sorted(run.glob("checkpoints/step-*/state.json"))]
    return [state["progress"]["layout"] for state in states]


def test_a_run_interrupted_by_ctrl_c_is_continued_to_its_end_as_it_was_asked_to(call, tmp_path):
    """It computes as it was asked to, and otherwise once it is resumed and asked otherwise."""
    options = [text for name, value in ASKED.items() for text in ("--set", f"stream.{name}={json.dumps(value)}")]
    events = interrupt_after_a_step(call(*options))
    stopped = events[-1]
    assert (stopped["kind"], stopped["status"]) == ("RunFinished", "stopped")
    assert any("tiles of 48" in event["text"] for event in events if event["kind"] == "LogLine")
    before = layouts(tmp_path)[-1]
    assert {name: before[name] for name in ASKED} == ASKED

    process = call("--resume", "--set", "stream.tile=64", "--set", "stream.stash=null", fresh=False)
    events, err = finish(process)
    assert process.returncode == 0, err
    assert [event["first_step"] for event in events if event["kind"] == "RunStarted"][-1] == stopped["steps"]
    assert events[-1]["status"] == "completed"
    assert events[-1]["steps"] == 6
    assert events[-1]["perplexity_after"] < events[-1]["perplexity_before"]
    after = layouts(tmp_path)[-1]
    assert {name: after[name] for name in ASKED} == ASKED | {"tile": 64, "stash": after["stash"]}
