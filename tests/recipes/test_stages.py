"""A run in stages through `engine train`: killed and resumed, it ends with the very bytes of an uninterrupted one."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.protocol.events import PhaseChanged, StepCompleted
from engine.runs.journal import JournalReader

STAGES = ((64, 6), (256, 4))


def source(folder: Path) -> Path:
    folder.mkdir()
    for number in range(14):
        body = "\n".join(f"    y_{n} = x * {number} + {n * n}\n    x = y_{n} - {n}" for n in range(12))
        (folder / f"module_{number}.py").write_text(f"def function_{number}(x):\n{body}\n    return x\n\n" * 2)
    return folder


def arguments(repository: Path, output: Path, way: str) -> list[str]:
    stages = ", ".join(f'"{context}:{updates}"' for context, updates in STAGES)
    settings = {
        "training.stages": f"[{stages}]",
        "training.tokens_per_update": 128,
        "training.evaluate_tokens": 512,
        "training.learning_rate": 0.003,
        "data.near_duplicates": "keep",
        "lora.rank": 2,
        "lora.dropout": 0.1,
        # A checkpoint after every update.
        "checkpoint.every_minutes": 1e-9,
        "checkpoint.keep": 100,
        "model.device": "cpu",
        "training.step": way,
    }
    options = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    return ["--repo", str(repository), "--output", str(output), "--model", "demo", *options]


def engine(folder: Path, *args: str) -> subprocess.Popen[bytes]:
    # Always as many threads, since the bytes of a sum depend on how it is divided.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "engine", "train", *args]
    with (folder / "stderr").open("wb") as stderr:
        return subprocess.Popen(command, env=environment, stdout=stderr, stderr=stderr)


def run_of(output: Path) -> Path:
    [run] = (output / "runs").iterdir()
    return run


def events(run: Path) -> list[object]:
    return [envelope.event for envelope in JournalReader(run / "events.jsonl").poll()]


def adapter_digest(run: Path) -> str:
    return hashlib.sha256((run / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


def kill_after(step: int, process: subprocess.Popen[bytes], output: Path) -> None:
    """Kills the training process itself as soon as so many updates are done."""
    for _ in range(6000):
        time.sleep(0.02)
        assert process.poll() is None, (output.parent / "stderr").read_text()
        runs = list((output / "runs").glob("*/events.jsonl"))
        done = max((e.step for e in events(runs[0].parent) if isinstance(e, StepCompleted)), default=0) if runs else 0
        if done >= step:
            record = json.loads((runs[0].parent / "process.json").read_text())
            os.kill(record["pid"], signal.SIGKILL)
            process.wait(60)
            return
    raise AssertionError("no step was completed")


@pytest.fixture(scope="module", params=["whole", "streamed"])
def uninterrupted(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp(request.param)
    repository, output = source(folder / "source"), folder / "out"
    process = engine(folder, *arguments(repository, output, request.param))
    assert process.wait(300) == 0, (folder / "stderr").read_text()
    return request.param, repository, run_of(output)


def test_the_journal_tells_the_stages_and_their_windows(uninterrupted):
    way, _, run = uninterrupted
    found = events(run)
    details = [event.detail for event in found if isinstance(event, PhaseChanged) and event.detail.startswith("stage")]
    assert details == [
        "stage 1 of 2: 6 updates on windows of 64 tokens",
        "stage 2 of 2: 4 updates on windows of 256 tokens",
    ]
    steps = [event for event in found if isinstance(event, StepCompleted)]
    assert [step.step for step in steps] == list(range(1, 11))
    assert all(step.total_steps == 10 for step in steps)
    # Two windows of 64 to an update of 128 tokens, then one of 256.
    assert all(80 < step.tokens <= 128 for step in steps[:6])
    assert all(160 < step.tokens <= 256 for step in steps[6:])
    assert steps[0].eta_seconds > steps[8].eta_seconds > 0
    schedule = json.loads((run / "plan.json").read_text())["schedule"]
    assert [(stage["context"], stage["updates"]) for stage in schedule["stages"]] == list(STAGES)
    # The layout changes with the stage, where tiles are as long as the windows.
    tiles = [stage["layout"].get("tile") for stage in schedule["stages"]]
    assert tiles == ([64, 256] if way == "streamed" else [None, None])


@pytest.mark.parametrize("step", [pytest.param(3, marks=pytest.mark.slow), 6, pytest.param(8, marks=pytest.mark.slow)])
def test_a_killed_run_ends_as_an_uninterrupted_one(uninterrupted, tmp_path, step):
    """Killed in the first stage, at the border, and in the second."""
    way, repository, whole = uninterrupted
    output = tmp_path / "out"
    process = engine(tmp_path, *arguments(repository, output, way))
    kill_after(step, process, output)
    again = engine(tmp_path, "--resume", "--output", str(output))
    assert again.wait(300) == 0, (tmp_path / "stderr").read_text()
    assert adapter_digest(run_of(output)) == adapter_digest(whole)


def test_a_dry_run_starts_nothing(uninterrupted, tmp_path):
    way, repository, _ = uninterrupted
    process = engine(tmp_path, *arguments(repository, tmp_path / "out", way), "--dry-run", "--json")
    assert process.wait(120) == 0, (tmp_path / "stderr").read_text()
    schedule = json.loads((tmp_path / "stderr").read_text())["schedule"]
    assert [(stage["context"], stage["updates"]) for stage in schedule["stages"]] == list(STAGES)
    assert not (tmp_path / "out" / "runs").exists()
    both = engine(tmp_path, "--resume", "--dry-run")
    assert both.wait(60) == 2
    assert "leave one of them out" in (tmp_path / "stderr").read_text()
