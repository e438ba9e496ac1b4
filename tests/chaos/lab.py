"""Where runs are killed: a tiny model, a small repository, and attempts that cost a fork instead of a start.

This process imports everything once and computes nothing, so that a fork of it is a training process just before its
first statement (engine.launch.child.main): the real journal, control socket, recipe, checkpoints.
"""

from __future__ import annotations

import asyncio
import atexit
import faulthandler
import functools
import hashlib
import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from engine.assets import asset
from engine.atomic_dir import DamagedError
from engine.config import RunConfig, from_mapping
from engine.launch import child
from engine.launch.launcher import RECIPE
from engine.protocol.events import RunFailed, RunFinished, StepCompleted, StepProgress
from engine.runs.journal import JournalReader
from engine.runs.run_directory import RunDirectory
from engine.training.checkpoints import verify

ATTEMPTS = 60
"""Starts of one run after which it must be complete."""


class BrokenError(AssertionError):
    """Something was lost or damaged. The message says what."""


@dataclass(frozen=True)
class Reference:
    """What an uninterrupted run gives."""

    weights: str
    "SHA-256 of the adapter."
    losses: dict[int, float]
    seconds: float
    "From its start to its end."


class Lab:
    """A folder with all that runs need, and the random numbers that decide when they die."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed, self.random = folder, seed, random.Random(seed)
        self.model = folder / "model"
        self.repository = folder / "repository"
        os.environ["ELITE_TUI_STATE_DIR"] = str(folder / "state")
        shutil.copytree(_made_model(), self.model)
        self.repository.mkdir()
        for name in ("locks.py", "queues.py", "runners.py", "timeouts.py", "mixins.py"):
            shutil.copy(Path(asyncio.__file__).parent / name, self.repository)

    def config(self, name: str, **training: Any) -> RunConfig:
        """A run of ten updates that saves after each of them, within steps too."""
        return from_mapping(
            {
                "model": {"name": str(self.model), "device": "cpu", "precision": "fp32"},
                "data": {"repositories": [str(self.repository)]},
                "lora": {"rank": 4, "dropout": 0.1},
                "training": {
                    "context": 128,
                    "tokens_per_update": 256,
                    "max_steps": 10,
                    "learning_rate": 2e-3,
                    "evaluate_every": 4,
                    "evaluate_tokens": 512,
                    **training,
                },
                "checkpoint": {"every_minutes": 1e-9},
                "output": {"directory": str(self.folder / name)},
            }
        )

    def attempt(self, run: RunDirectory, config: RunConfig, *, resuming: bool) -> int:
        """Starts a training process; returns its id."""
        return in_fork(lambda: train(run, config, resuming=resuming))

    def reference(self, config: RunConfig) -> Reference:
        """Trains without a disturbance."""
        run = RunDirectory.create(config)
        began = time.monotonic()
        status = wait_for(self.attempt(run, config, resuming=False))
        if status != 0:
            raise BrokenError(f"the undisturbed run ended with {status}: {run.log_path.read_text()[-2000:]}")
        return Reference(weights_of(run), losses_of(run), time.monotonic() - began)

    def kill_until_complete(self, config: RunConfig, reference: Reference, most: int) -> int:
        """Kills a run at random moments, checks it after each, and resumes it until it is complete; returns the kills.

        Args:
            config: What to train.
            reference: What has to come out.
            most: Kills after which it is left in peace.
        """
        run = RunDirectory.create(config)
        for kills in range(ATTEMPTS):
            process = self.attempt(run, config, resuming=kills > 0)
            after = self.random.uniform(0.0, 1.1 * reference.seconds) if kills < most else float("inf")
            status = wait_for(process, after)
            check_run(run)
            if status == 0:
                check_result(run, reference)
                return kills
            if status != -signal.SIGKILL:
                raise BrokenError(f"ended with {status}: {run.log_path.read_text()[-2000:]}")
        raise BrokenError(f"not complete after {ATTEMPTS} attempts")


@functools.cache
def _made_model() -> Path:
    """Makes the model of all labs of this process, once."""
    folder = Path(tempfile.mkdtemp(prefix="elite-chaos-model-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    # Elsewhere: threads that computing starts here would be missing in every fork.
    if status := wait_for(in_fork(lambda: _make_model(folder))):
        raise BrokenError(f"the model was not made: status {status}")
    return folder


def _make_model(folder: Path) -> None:
    demo = asset("demo-model")
    vocabulary = json.loads((demo / "config.json").read_text())["vocab_size"]
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (demo / name).exists():
            shutil.copy(demo / name, folder)


def train(run: RunDirectory, config: RunConfig, *, resuming: bool) -> None:
    """Trains in this process, as the child that a launcher spawns; exits with its status."""
    context = multiprocessing.get_context("fork")
    _, ready = context.Pipe(duplex=False)
    child.main(str(run.path), config, resuming, RECIPE, context.Queue(1000), context.SimpleQueue(), ready)


HANGS_AFTER = 300.0
"""Seconds. An attempt takes a few."""


def in_fork(work: Callable[[], None]) -> int:
    """Does something in a process of its own, which leads its group; returns its id."""
    process = os.fork()
    if process:
        return process
    status = 70
    # An attempt that hangs says where, in the run's log, and counts as one that failed.
    faulthandler.dump_traceback_later(HANGS_AFTER, exit=True)
    try:
        os.setpgid(0, 0)
        work()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def wait_for(process: int, at_most: float = float("inf")) -> int:
    """Exit status of a process, killed (-9) if it takes longer than so many seconds."""
    deadline = time.monotonic() + at_most
    while time.monotonic() < deadline:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(min(0.002, max(0.0, deadline - time.monotonic())))
    os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def check_run(run: RunDirectory) -> None:
    """What must be true of a run directory whenever its process is gone."""
    run.load_config()
    reader = JournalReader(run.journal_path)
    events = reader.poll()
    if reader.damaged:
        raise BrokenError(f"{reader.damaged} damaged lines in the journal")
    numbers = [envelope.seq for envelope in events]
    if numbers != sorted(set(numbers)):
        raise BrokenError(f"the journal's numbers do not rise: {numbers}")
    if [e for e in events[:-1] if isinstance(e.event, RunFailed)]:
        raise BrokenError("an attempt failed")
    for path in run.checkpoints_path.glob("step-*"):
        try:
            verify(path)
        except DamagedError as error:
            raise BrokenError(f"{path.name}: {error}") from error


def check_result(run: RunDirectory, reference: Reference) -> None:
    """The run is complete, and what the undisturbed one is, to the bit."""
    events = [e.event for e in JournalReader(run.journal_path).poll() if not isinstance(e.event, StepProgress)]
    if not isinstance(events[-1], RunFinished) or events[-1].status != "completed":
        raise BrokenError(f"the last event is {events[-1]}")
    if losses_of(run) != reference.losses:
        raise BrokenError("the losses differ from the undisturbed run's")
    if weights_of(run) != reference.weights:
        raise BrokenError("the weights differ from the undisturbed run's")


def weights_of(run: RunDirectory) -> str:
    """SHA-256 of the adapter."""
    return hashlib.sha256((run.adapter_path / "adapter_model.safetensors").read_bytes()).hexdigest()


def losses_of(run: RunDirectory, tolerance: float = 0.0) -> dict[int, float]:
    """Loss by step; a step that was made again must have had the same, but for a relative tolerance."""
    found: dict[int, float] = {}
    for envelope in JournalReader(run.journal_path).poll():
        event = envelope.event
        if isinstance(event, StepCompleted):
            former = found.setdefault(event.step, event.loss)
            if not math.isclose(event.loss, former, rel_tol=tolerance, abs_tol=0.0):
                raise BrokenError(f"step {event.step} had another loss when it was made again")
    return found
