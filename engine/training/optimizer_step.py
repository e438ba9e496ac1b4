"""Takes one optimiser step. Computes the gradient of an update's windows, clips and applies it, and counts progress."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.errors.training import GRADIENT_NOT_FINITE, LOSS_NOT_FINITE
from engine.optim.guarded import launch_update
from engine.randomness import keyed_numbers

if TYPE_CHECKING:
    from engine.data.window_source import Update
    from engine.steps.whole_step import StepMonitor, StepResult
    from engine.training.components import TrainerComponents
    from engine.training.state import Progress


@dataclass(frozen=True, kw_only=True)
class StepFigures:
    """Results of one optimiser step."""

    result: StepResult
    loss: float
    "Loss of the update: the sum of the losses over the sum of the divisors (`Window.divisor`)."
    lr: float
    grad_norm: float | None
    seconds: float


def take_optimizer_step(
    parts: TrainerComponents, progress: Progress, update: Update, monitor: StepMonitor
) -> StepFigures:
    """Takes one optimiser step over the windows of one update. Changes weights and progress only if nothing failed.

    The gradient is that of the mean loss over all the update's targets, weighted if they have weights, as for one big
    batch. Each window's summed loss is therefore scaled by 1 / (targets of the update), not by 1 / (number of windows);
    for preference pairs by 1 / (number of pairs). Random numbers depend only on
    the run's seed and the number of updates made before.

    Raises:
        EliteError: LOSS_NOT_FINITE; GRADIENT_NOT_FINITE, if no loss scaler handles the overflow.
    """
    started = time.monotonic()
    parts.optimizer.zero_grad(set_to_none=True)
    sequences = parts.sequences([parts.windows[index] for index in update.windows], progress.step)
    scaler = parts.accelerator.scaler
    divisor = sum(sequence.divisor for sequence in sequences)
    scale = 1.0 / divisor
    if scaler is not None:
        scale = scaler.scale(torch.tensor(scale, device=parts.accelerator.device)).item()
    with keyed_numbers(parts.accelerator.device, parts.seed, progress.step, "update"):
        result = parts.step.run(sequences, scale, monitor)
    if not result.waits:  # DeepSpeed updates the weights as it clips
        _check_loss(result, progress)
    parts.accelerator.unscale_gradients()
    found = parts.gradients.apply(list(parts.tuning.weights.values()), progress.step)
    figures = [figure for figure in (result.summed, found) if isinstance(figure, Tensor)]
    launched = parts.guarded and scaler is None and len(figures) == 2
    if launched:
        launch_update(parts.optimizer, figures)
    _check_loss(result, progress)  # waits, after all that needs no waiting was launched
    norm = float(found)
    if not math.isfinite(norm) and scaler is None:
        raise GRADIENT_NOT_FINITE(value=norm, step=progress.step + 1)
    lr = float(parts.schedule.get_last_lr()[0])
    if not launched:
        parts.optimizer.step()  # fp16's scaler skips it if the scaled gradients overflowed
    parts.schedule.step()
    seconds = time.monotonic() - started
    progress.step += 1
    progress.epoch = update.epoch
    progress.windows += len(update.windows)
    progress.tokens += result.tokens
    progress.seconds += seconds
    return StepFigures(
        result=result,
        loss=result.loss_sum / divisor,
        lr=lr,
        grad_norm=norm if math.isfinite(norm) else None,
        seconds=seconds,
    )


def _check_loss(result: StepResult, progress: Progress) -> None:
    if not math.isfinite(result.loss_sum):
        raise LOSS_NOT_FINITE(value=result.loss_sum, step=progress.step + 1)
