"""The loop: update after update, obeying commands in between, saving as it goes."""

from __future__ import annotations

import itertools
import time
from collections import deque
from typing import TYPE_CHECKING, Literal

from engine import errors
from engine.protocol import CheckpointSaved, LogLine, StepCompleted, StepProgress, Stop
from engine.training.commands import Actions, obey
from engine.training.memory import memory_figures
from engine.training.optimizer_step import StepFigures, take_optimizer_step
from engine.training.state import Progress, RandomState, capture, capture_random
from engine.training.step import StepAbandonedError
from engine.training.updates import plan_updates

if TYPE_CHECKING:
    from engine.runtime.session import TrainingSession
    from engine.training.parts import Parts

ETA_STEPS = 20
"""Latest steps whose speed the estimate of the time left is made from."""


PROGRESS_SECONDS = 0.2
"""Shortest time between two reports from inside a step."""


def fit(session: TrainingSession, parts: Parts, progress: Progress) -> Literal["completed", "stopped"]:
    """Trains from where `progress` stands to its end, or until told to stop. Leaves a checkpoint either way.

    Raises:
        EliteError: LOSS_NOT_FINITE, GRADIENT_NOT_FINITE (after saving the state before the bad update),
            OUTPUT_FULL, OUTPUT_UNWRITABLE.
    """
    training = session.config.training
    generators = capture_random()

    def save() -> str:
        return _save(session, parts, progress, generators)

    actions = Actions(save=save, evaluate=parts.evaluate)
    pace = _Pace()
    saved_at = time.monotonic()
    updates = plan_updates(parts.windows, training, parts.context)
    for update in itertools.islice(updates, progress.step, None):
        generators = capture_random()
        stop = obey(session, actions)
        if stop is None:
            try:
                done = take_optimizer_step(parts, progress, update, _Monitor(session, progress.step + 1))
            except StepAbandonedError:
                stop = obey(session, actions) or Stop(id="")
            except errors.EliteError:
                # Weights and progress are still those before the bad update: worth keeping.
                save()
                raise
        if stop is not None:
            # `generators` are from before an abandoned step, so that resuming draws what it drew.
            if stop.save:
                save()
            return "stopped"
        generators = capture_random()
        session.emit(_completed(parts, progress, done, pace))
        if (
            training.evaluate_every
            and progress.step % training.evaluate_every == 0 < progress.total_steps - progress.step
        ):
            parts.evaluate()
        if (reason := parts.early_end()) is not None:
            session.emit(LogLine(level="info", text=f"training ends early: {reason}"))
            break
        if time.monotonic() - saved_at >= session.config.checkpoint.every_minutes * 60:
            save()
            saved_at = time.monotonic()
    save()
    return "completed"


class _Monitor:
    """Passes a step's progress on, and the wish to stop down."""

    def __init__(self, session: TrainingSession, step: int) -> None:
        self._session = session
        self._step = step
        self._told_at = time.monotonic()  # short steps have nothing to tell from inside

    def progress(self, stage: str, done: int, total: int, *, layer: int | None = None, tile: int | None = None) -> None:
        now = time.monotonic()
        if now - self._told_at < PROGRESS_SECONDS:
            return
        self._told_at = now
        self._session.emit(StepProgress(step=self._step, stage=stage, done=done, total=total, layer=layer, tile=tile))

    def stop_requested(self) -> bool:
        return self._session.commands.stop_requested


class _Pace:
    """How long the steps that are left will take, by the latest ones."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=ETA_STEPS)

    def eta(self, seconds: float, steps_left: int) -> float:
        self._seconds.append(seconds)
        return steps_left * sum(self._seconds) / len(self._seconds)


def _completed(parts: Parts, progress: Progress, done: StepFigures, pace: _Pace) -> StepCompleted:
    return StepCompleted(
        step=progress.step,
        total_steps=progress.total_steps,
        epoch=round(progress.epoch, 4),
        loss=done.result.loss_sum / done.result.tokens,
        lr=done.lr,
        grad_norm=done.grad_norm,
        tokens=done.result.tokens,
        tokens_per_second=done.result.tokens / max(done.seconds, 1e-9),
        seconds=done.seconds,
        eta_seconds=pace.eta(done.seconds, progress.total_steps - progress.step),
        **memory_figures(parts.accelerator.device),
    )


def _save(session: TrainingSession, parts: Parts, progress: Progress, generators: RandomState) -> str:
    files = capture(parts.model, parts.optimizer, parts.schedule, parts.accelerator.scaler, progress, generators)
    saved = parts.checkpoints.save(progress.step, files)
    path = saved.path.relative_to(session.run.path).as_posix()
    session.emit(CheckpointSaved(step=saved.step, path=path, bytes=saved.bytes, seconds=saved.seconds))
    return f"checkpoint {path}"
