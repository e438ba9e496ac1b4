"""Short recipes for the training process: real events, real commands, no training.

The run's `output.model_name` chooses what goes wrong (see `train`).
"""

from __future__ import annotations

import os
import sys
import time

from engine.errors.data import REPOSITORY_EMPTY
from engine.protocol.commands import EvaluateNow, Pause, Resume, SaveNow, Stop
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
from engine.runs.context import TrainingSession

PATH = "tests.runs.recipes:train"
STEP_SECONDS = 0.02


def train(session: TrainingSession) -> None:
    """Emits what a training of `training.max_steps` steps (default 5) emits, and obeys every command."""
    mode = session.config.output.model_name
    total = session.config.training.max_steps or 5
    first = _steps_done(session) if session.resuming else 0
    session.emit(PhaseChanged(phase="data"))
    if mode == "refuse":
        raise REPOSITORY_EMPTY(path="/nowhere")
    session.emit(RunStarted(model="demo", context=64, total_steps=total, first_step=first, pid=os.getpid()))
    if first == 0:
        session.emit(EvalCompleted(step=0, loss=2.0, perplexity=7.389, tokens=100))
    session.emit(PhaseChanged(phase="training"))
    sys.stdout.write("text on stdout of the training process\n")
    sys.stdout.write(f"threads spin {os.environ.get('GOMP_SPINCOUNT')} rounds\n")
    step = first
    while step < total:
        if not _obey(session, step):
            _finish(session, step, "stopped")
            return
        for done in range(1, 4):
            session.emit(StepProgress(step=step + 1, stage="forward", done=done, total=3))
            time.sleep(STEP_SECONDS / 3)
        step += 1
        session.emit(_completed(step, total))
        if step == 2 and mode == "trouble":
            session.emit(RecoveryTaken(what="the step was repeated", why="its loss was not finite"))
            session.emit(WarningRaised(code="paused-disk-full", text="paused: no space", hint="free 20 MB"))
        if step == 2:
            _misbehave(mode)
    _finish(session, step, "completed")


def _misbehave(mode: str) -> None:
    if mode == "crash":
        raise ZeroDivisionError("a defect\x1b[31m")
    if mode == "vanish":
        sys.stderr.write("the last words\n")
        os._exit(77)
    if mode == "hang":
        time.sleep(600)
    if mode == "full":
        raise OSError(28, "No space left on device")


def _obey(session: TrainingSession, step: int) -> bool:
    """Carries out what was asked; false to stop."""
    while (command := session.commands.poll()) is not None:
        if isinstance(command, Pause):
            session.acknowledge(command, True)
            while not isinstance(command, (Resume, Stop)):
                command = session.commands.wait(1.0)
        if isinstance(command, Stop):
            session.acknowledge(command, True)
            if command.save:
                _save(session, step)
            return False
        if isinstance(command, EvaluateNow):
            session.acknowledge(command, False, "this recipe cannot")
            continue
        if isinstance(command, SaveNow):
            _save(session, step)
        session.acknowledge(command, True)
    return True


def _save(session: TrainingSession, step: int) -> None:
    path = session.run.checkpoints_path / f"step-{step:06d}"
    path.mkdir(parents=True, exist_ok=True)
    session.emit(CheckpointSaved(step=step, path=f"checkpoints/{path.name}", bytes=1))


def _steps_done(session: TrainingSession) -> int:
    return max(int(path.name.removeprefix("step-")) for path in session.run.checkpoints_path.iterdir())


def _finish(session: TrainingSession, step: int, status: str) -> None:
    session.emit(PhaseChanged(phase="evaluation"))
    session.emit(EvalCompleted(step=step, loss=1.5, perplexity=4.48, tokens=100))
    session.emit(LogLine(level="info", text="about to finish"))
    session.run.adapter_path.mkdir(exist_ok=True)
    (session.run.adapter_path / "adapter_model.safetensors").write_bytes(b"of no use")
    session.emit(
        RunFinished(
            status=status, steps=step, seconds=1.0, adapter="adapter", perplexity_before=7.389, perplexity_after=4.48
        )
    )


def _completed(step: int, total: int) -> StepCompleted:
    return StepCompleted(
        step=step,
        total_steps=total,
        epoch=step / total,
        loss=2.0 / step,
        lr=1e-4,
        grad_norm=1.0,
        tokens=64,
        tokens_per_second=1000.0,
        eta_seconds=(total - step) * STEP_SECONDS,
    )
