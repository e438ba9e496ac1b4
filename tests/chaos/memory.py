"""What runs out: memory of the GPU and of the host, at every phase of a run.

The exception is raised where an allocation would raise it: in the real training process, at a random call of the
function that does the phase's work, before or after that work.
"""

from __future__ import annotations

import functools
import importlib
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from engine.config import RunConfig, from_mapping, to_mapping
from engine.protocol.events import RecoveryTaken, RunFailed
from engine.runs.journal import JournalReader
from engine.runs.run_directory import RunDirectory
from tests.chaos.lab import BrokenError, Lab, Reference, check_result, check_run, in_fork, losses_of, train, wait_for

TOLERANCE = 1e-4
"""Relative, between losses of whole windows and of tiles, in fp32."""

Phase = tuple[str, str, int]
"""Name, "module:attribute" of what does its work, and the calls among which the one that fails is drawn."""

PHASES: tuple[Phase, ...] = (
    ("planning", "engine.recipes.fine_tune:set_up", 1),
    ("reading the repository", "engine.recipes.fine_tune:build_dataset", 1),
    ("loading the model", "engine.recipes.building:load_model", 1),
    ("adding the adapter", "engine.recipes.fine_tune:build_learning", 1),
    ("scoring held-out files", "engine.steps.streamed_windows:StreamedWindows.loss", 6),
    ("a step, forward", "forward", 6),
    ("a step, loss", "loss", 6),
    ("a step, backward", "backward", 6),
    ("the optimiser", "torch.optim:AdamW.step", 8),
    ("copying what a checkpoint holds", "engine.training.rollback:capture", 8),
    ("writing a checkpoint", "engine.atomic_dir:_write_aside", 8),
    ("saving within a step", "engine.steps.partial_checkpoint:_files", 8),
    ("saving the adapter", "engine.models.fine_tuning:AdapterTuning.save", 1),
    ("writing the report", "engine.recipes.fine_tune:write_report", 1),
)
STAGES = frozenset({"forward", "loss", "backward"})

FAULTS: dict[str, Callable[[], Exception]] = {
    "GPU": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "host": lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
    "Python": lambda: MemoryError(),
}


def run_out_of_memory(lab: Lab, times: int) -> dict[str, Any]:
    """So many times at each phase. The run goes on and learns the same, or ends with the remedy and is resumed."""
    config = _without_dropout(lab.config("short-of-memory", step="streamed"))
    reference = lab.reference(config)
    _remove_runs(config)
    phases: dict[str, dict[str, int]] = {}
    for phase in PHASES:
        counts = phases.setdefault(phase[0], {"injected": 0, "went on": 0, "ended with the remedy and was resumed": 0})
        for number in range(times):
            fault = list(FAULTS)[number % len(FAULTS)]
            counts["injected"] += 1
            counts[_run_once(lab, config, reference, phase, fault)] += 1
    return {"injected": sum(counts["injected"] for counts in phases.values()), "phases": phases}


def _without_dropout(config: RunConfig) -> RunConfig:
    """Another layout of the step draws dropout in another order, and could not be compared."""
    mapping = to_mapping(config)
    return from_mapping({**mapping, "lora": {**mapping["lora"], "dropout": 0.0}})


def _run_once(lab: Lab, config: RunConfig, reference: Reference, phase: Phase, fault: str) -> str:
    where = f"{phase[0]}, {fault} memory"
    run = RunDirectory.create(config)
    met = run.path / "met"
    call, before = lab.random.randint(1, phase[2]), lab.random.random() < 0.5

    def attempt() -> None:
        inject(phase, FAULTS[fault], call, before=before, met=met)
        train(run, config, resuming=False)

    status = wait_for(in_fork(attempt), 120.0)
    check_run(run)
    events = [envelope.event for envelope in JournalReader(run.journal_path).poll()]
    if not met.exists():
        raise BrokenError(f"{where}: call {call} of {phase[1]} never came")
    met.unlink()
    if status == 0:
        _check_like(run, reference, where)
        outcome = "went on"
        if not any(isinstance(event, RecoveryTaken) for event in events):
            raise BrokenError(f"{where}: went on without a word")
    else:
        last = events[-1]
        if not isinstance(last, RunFailed) or last.error not in ("out-of-memory", "memory-full") or not last.hint:
            raise BrokenError(f"{where}: ended with {status}, {last}")
        if wait_for(lab.attempt(run, config, resuming=True), 120.0) != 0:
            raise BrokenError(f"{where}: could not be resumed: {run.log_path.read_text()[-2000:]}")
        check_result(run, reference)
        outcome = "ended with the remedy and was resumed"
    _remove_runs(config)
    return outcome


def _check_like(run: RunDirectory, reference: Reference, where: str) -> None:
    """Complete, every step made, and every loss that of the undisturbed run but for the layout's rounding."""
    if run.summary().status != "completed":
        raise BrokenError(f"{where}: {run.summary().status}")
    found = losses_of(run, tolerance=TOLERANCE)
    if found.keys() != reference.losses.keys():
        raise BrokenError(f"{where}: steps {sorted(found)} were made")
    for step, loss in found.items():
        if not math.isclose(loss, reference.losses[step], rel_tol=TOLERANCE):
            raise BrokenError(f"{where}: the loss of step {step} is {loss}, not {reference.losses[step]}")


def inject(phase: Phase, fault: Callable[[], Exception], call: int, *, before: bool, met: Path) -> None:
    """Makes the n-th call of what does a phase's work fail, in this process, and notes in a file that it did."""
    calls = [0]

    def meet() -> None:
        met.touch()
        raise fault()

    if phase[1] in STAGES:
        _inject_into_steps(phase[1], call, calls, meet)
        return
    module, _, attribute = phase[1].partition(":")
    owner: Any = importlib.import_module(module)
    *outer, name = attribute.split(".")
    for part in outer:
        owner = getattr(owner, part)
    work = getattr(owner, name)

    @functools.wraps(work)
    def failing(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == call and before:
            meet()
        result = work(*args, **kwargs)
        if calls[0] == call:
            meet()
        return result

    setattr(owner, name, failing)


def _inject_into_steps(stage: str, call: int, calls: list[int], meet: Callable[[], None]) -> None:
    from engine.training.loop import _Monitor

    report = _Monitor.progress

    def progress(self: _Monitor, message: str, *args: Any, **kwargs: Any) -> None:
        if message == stage:
            calls[0] += 1
            if calls[0] == call:
                meet()
        report(self, message, *args, **kwargs)

    _Monitor.progress = progress  # type: ignore[method-assign]


def _remove_runs(config: RunConfig) -> None:
    shutil.rmtree(Path(config.output.directory) / "runs", ignore_errors=True)
