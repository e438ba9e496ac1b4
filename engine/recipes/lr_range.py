"""Runs the learning-rate range test on a run's own data, model and step, and saves no adapter."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from msgspec.structs import replace

from engine.data.dataset import build_dataset
from engine.data.window_source import plan_updates
from engine.errors.usage import CONFIG_INVALID
from engine.hardware.process_memory import memory_usage
from engine.models.loading import load_tokenizer
from engine.optim.lr_range import FILE_NAME, range_rates, range_test
from engine.optim.schedule import Schedule, Setting
from engine.protocol.events import LogLine, PhaseChanged, RunFinished, StepCompleted
from engine.recipes.building import build_learning, build_model, choose_step
from engine.recipes.setup import Setup, set_up
from engine.steps.failures import memory_errors
from engine.steps.whole_step import StepAbandonedError
from engine.training.components import TrainerComponents
from engine.training.optimizer_step import take_optimizer_step
from engine.training.state import Progress
from engine.whole_file import replace_text

if TYPE_CHECKING:
    from engine.runs.context import TrainingSession

LOWEST, HIGHEST = 1e-6, 1.0
STEPS = 60
"""Number of rates that are tried, unless `training.max_steps` is set."""
_MANY_EPOCHS = 1000.0


class _Monitor:
    """Tells a step of a requested stop."""

    def __init__(self, session: TrainingSession) -> None:
        self._session = session

    def progress(self, stage: str, done: int, total: int, *, layer: int | None = None, tile: int | None = None) -> None:
        """Ignores progress within a step, which is not shown."""

    def stop_requested(self) -> bool:
        """Tells whether the test should stop."""
        return self._session.commands.stop_requested


def find_rate(session: TrainingSession) -> None:
    """Tries rates from 1e-6 to 1, one per update, and writes the result to lr_range.json in the run's directory.

    Raises:
        EliteError: as `engine.recipes.fine_tune.train`.
    """
    setup = set_up(session, grow=False)
    steps = session.config.training.max_steps or STEPS
    rates = range_rates(LOWEST, HIGHEST, steps)
    progress = Progress(total_steps=steps)
    parts = _build(session, setup, progress, rates)
    training = replace(session.config.training, epochs=_MANY_EPOCHS, max_steps=steps)
    updates = plan_updates(parts.windows, training, setup.context)

    def step(rate: float) -> float:
        done = take_optimizer_step(parts, progress, next(updates), _Monitor(session))
        loss = done.loss
        session.emit(
            StepCompleted(
                step=progress.step,
                total_steps=steps,
                epoch=progress.epoch,
                loss=loss,
                lr=rate,
                grad_norm=done.grad_norm,
                tokens=done.result.tokens,
                tokens_per_second=done.result.tokens / max(done.seconds, 1e-9),
                seconds=done.seconds,
                **memory_usage(parts.accelerator.device),
            )
        )
        return loss

    session.emit(PhaseChanged(phase="training", detail=f"{steps} rates from {LOWEST:g} to {HIGHEST:g}"))
    stopped = False
    try:
        with memory_errors("training", f"one window of {setup.context:,} tokens", "set a lower training.context"):
            found = range_test(step, rates)
        result = {
            "suggested": found.suggested,
            "diverged_at": found.diverged_at,
            "rates": list(found.rates),
            "losses": list(found.losses),
            "smoothed": list(found.smoothed),
        }
        replace_text(session.run.path / FILE_NAME, json.dumps(result, indent=1) + "\n")
    except StepAbandonedError:
        stopped = True
    seconds = time.monotonic() - setup.started
    session.emit(RunFinished(status="stopped" if stopped else "completed", steps=progress.step, seconds=seconds))


def _build(session: TrainingSession, setup: Setup, progress: Progress, rates: list[float]) -> TrainerComponents:
    """Builds the run's own components, but with a schedule that follows the rates."""
    config = session.config

    def notify(text: str) -> None:
        session.emit(LogLine(level="info", text=text))

    if config.training.objective == "dpo":
        raise CONFIG_INVALID(
            source="configuration",
            field="training.objective",
            problem="the rates are compared by the cross-entropy, not by dpo's loss",
            remedy="add --set training.objective=sft to compare them on the chosen answers",
        )
    session.emit(PhaseChanged(phase="data", detail="reading the repositories"))
    cache = session.run.path.parent.parent / "cache"
    tokenizer = load_tokenizer(setup.spec)
    windows = build_dataset(
        config.data, tokenizer=tokenizer, context=setup.context, cache=cache, limit=setup.context
    ).train
    session.emit(PhaseChanged(phase="model", detail=setup.spec.name))
    tuning, accelerator = build_model(config, setup, notify)
    way = choose_step(session, setup, tuning, accelerator, windows, progress, notify)
    rated = replace(config, training=setup.training)
    learning = build_learning(tuning, rated, context=setup.context, total_steps=len(rates))
    optimizer = learning.updating.optimizer
    peak = min(group["initial_lr"] for group in optimizer.param_groups)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"]
    schedule = Schedule(optimizer, lambda step: Setting(factor=rates[step] / peak), len(rates))
    return TrainerComponents(
        tuning=tuning,
        step=way,
        optimizer=accelerator.prepare(optimizer),
        schedule=schedule,
        gradients=learning.updating.gradients,
        accelerator=accelerator,
        windows=windows,
        context=setup.context,
        checkpoints=setup.checkpoints,
        seed=config.training.seed,
        evaluate=lambda: None,
    )
