"""The training loop. Makes updates, executes commands between them, saves checkpoints, and rolls back on failure."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from engine.data.window_source import plan_updates
from engine.hardware.process_memory import memory_usage
from engine.protocol.commands import Stop
from engine.protocol.events import LogLine, StepCompleted, StepProgress
from engine.runs.commands import Actions, decide
from engine.steps.held_out_loss import perplexity
from engine.steps.whole_step import StepAbandonedError
from engine.training.optimizer_step import StepFigures, take_optimizer_step
from engine.training.recovery import Recovery
from engine.training.rollback import RollbackStore

if TYPE_CHECKING:
    from engine.data.window_source import Update
    from engine.runs.context import TrainingSession
    from engine.training.components import TrainerComponents
    from engine.training.eta import Eta
    from engine.training.state import Progress

PROGRESS_SECONDS = 0.2
"""Least seconds between two progress events from inside a step."""


def fit(session: TrainingSession, parts: TrainerComponents, progress: Progress) -> Literal["completed", "stopped"]:
    """Trains from `progress` to the last update, or until a Stop. Saves a checkpoint either way.

    Raises:
        EliteError: a failure that engine.training.recovery could not handle, after the last good state was saved.
    """
    updates = list(parts.updates or plan_updates(parts.windows, session.config.training, parts.context))
    rollback = RollbackStore(session, parts, progress)
    recovery = Recovery(session, parts, progress, rollback, updates)
    try:
        with recovery.keep_what_is_left():
            return _fit(session, parts, progress, rollback, recovery, updates)
    finally:
        rollback.close()


def _fit(
    session: TrainingSession,
    parts: TrainerComponents,
    progress: Progress,
    rollback: RollbackStore,
    recovery: Recovery,
    updates: list[Update],
) -> Literal["completed", "stopped"]:
    actions = Actions(save=rollback.save_on_command, evaluate=lambda: _told(parts.evaluate()))
    eta = parts.eta(updates)
    while progress.step < len(updates):
        rollback.mark()
        stop = decide(session, actions)
        if stop is None:
            parts.enter(updates[progress.step])
            monitor = _Monitor(session, progress.step + 1, recovery.watch)
            try:
                done = take_optimizer_step(parts, progress, updates[progress.step], monitor)
            except StepAbandonedError:
                stop = decide(session, actions) or Stop(id="")
            except Exception as error:
                recovery.handle(error)
                continue
        if stop is not None:
            # The RNG states to save are from before an abandoned step, so that resuming draws the same numbers.
            if stop.save:
                rollback.save_now()
            return "stopped"
        rollback.mark()
        if not recovery.accept(done.loss):
            continue
        session.emit(_completed(parts, progress, done, eta))
        session.group.report(session.emit, progress.step, done.seconds)
        rollback.keep_if_due()
        rollback.save_if_due(_score_if_due(parts, progress, session.config.training.evaluate_every))
        if (reason := parts.early_end()) is not None:
            session.emit(LogLine(level="info", text=f"training ends early: {reason}"))
            break
        recovery.between_steps()
    rollback.save_last()
    return "completed"


def _score_if_due(parts: TrainerComponents, progress: Progress, every: int) -> float | None:
    """Evaluates the held-out loss every `every` steps, except at the end, where it is evaluated anyway."""
    if every and progress.step % every == 0 < progress.total_steps - progress.step:
        return parts.evaluate()
    return None


def _told(loss: float | None) -> str:
    return "abandoned: the run is stopping" if loss is None else f"held-out perplexity {perplexity(loss):,.2f}"


class _Monitor:
    """Emits a step's progress, tells the step of a requested stop, and runs the machine's watches."""

    def __init__(self, session: TrainingSession, step: int, watch: Callable[[], None]) -> None:
        self._session, self._step, self._watch = session, step, watch
        self._told_at = time.monotonic()  # short steps report no progress from inside

    def progress(self, stage: str, done: int, total: int, *, layer: int | None = None, tile: int | None = None) -> None:
        now = time.monotonic()
        if now - self._told_at < PROGRESS_SECONDS:
            return
        self._told_at = now
        self._session.emit(StepProgress(step=self._step, stage=stage, done=done, total=total, layer=layer, tile=tile))

    def stop_requested(self) -> bool:
        self._watch()
        return self._session.commands.stop_requested


def _completed(parts: TrainerComponents, progress: Progress, done: StepFigures, eta: Eta) -> StepCompleted:
    preferences = done.result.preferences
    return StepCompleted(
        step=progress.step,
        total_steps=progress.total_steps,
        epoch=round(progress.epoch, 4),
        loss=done.loss,
        lr=done.lr,
        grad_norm=done.grad_norm,
        tokens=done.result.tokens,
        tokens_per_second=done.result.tokens / max(done.seconds, 1e-9),
        seconds=done.seconds,
        eta_seconds=eta.completed(progress.step, done.seconds),
        reward_margin=None if preferences is None else preferences.margin,
        reward_accuracy=None if preferences is None else preferences.accuracy,
        **memory_usage(parts.accelerator.device),
    )
