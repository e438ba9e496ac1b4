"""Builds a run's optimiser, schedule, gradient pipeline, and the followers of each update."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch.optim import Optimizer

from engine.optim.adamw import adamw
from engine.optim.averaging import AdapterAverage
from engine.optim.centralization import centralize
from engine.optim.clipping import AdaptiveClipping, NormClipping
from engine.optim.gradients import Clipping, GradientPipeline, GradientTransform
from engine.optim.guarded import can_guard
from engine.optim.lookahead import Lookahead
from engine.optim.noise import GradientNoise
from engine.optim.schedule import Schedule, averaging_start, make_schedule, peak_rate

if TYPE_CHECKING:
    from engine.config import RunConfig, TrainingSection
    from engine.models.fine_tuning import FineTuning


class Stateful(Protocol):
    """State that a checkpoint saves, of tensors and JSON values."""

    def state_dict(self) -> dict[str, Any]:
        """Returns the state that a resumed run needs."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""


class Follower(Stateful, Protocol):
    """Changes or reads the weights after every update but those that fp16 skips on overflow."""

    def after_step(self) -> None:
        """Called after each update of the optimiser."""


@dataclass(frozen=True, kw_only=True)
class Updating:
    """Optimiser of a run, with its schedule, gradient pipeline and followers."""

    optimizer: Optimizer
    "Calls the followers after each update."
    guarded: bool
    "Whether an update may be launched before its loss is known (engine.optim.guarded)."
    schedule: Schedule
    gradients: GradientPipeline
    average: AdapterAverage | None
    "Average that is scored and saved instead of the last weights."
    stateful: Mapping[str, Stateful]


def build_updating(tuning: FineTuning, config: RunConfig, *, total_steps: int, tokens_per_update: int) -> Updating:
    """Builds the optimiser, schedule, gradient pipeline and followers that the configuration names.

    Raises:
        EliteError: OPTIMIZATION_UNAVAILABLE when a library is missing.
    """
    training = config.training
    optimizer = tuning.optimizer or adamw(tuning, config, peak_rate(training, tokens_per_update))
    followers: dict[str, Follower] = {}
    if training.lookahead_steps:
        followers["lookahead"] = Lookahead(tuning.weights, training.lookahead_steps, training.lookahead_alpha)
    average = _average(tuning, training, total_steps)
    if average is not None:
        followers["average"] = average
    for follower in followers.values():
        optimizer.register_step_post_hook(lambda *_, follower=follower: follower.after_step())
    optimizer.register_step_post_hook(lambda *_: tuning.publish())  # after the followers, which change weights too
    return Updating(
        optimizer=optimizer,
        guarded=can_guard(optimizer) and not followers,
        schedule=make_schedule(optimizer, training, total_steps),
        gradients=_gradients(training),
        average=average,
        stateful=followers,
    )


def _average(tuning: FineTuning, training: TrainingSection, total_steps: int) -> AdapterAverage | None:
    if training.ema_decay:
        return AdapterAverage(tuning.weights, decay=training.ema_decay)
    if training.swa_fraction:
        first = averaging_start(training, total_steps)
        return AdapterAverage(tuning.weights, decay=None, first_update=first)
    return None


def _gradients(training: TrainingSection) -> GradientPipeline:
    before: list[GradientTransform] = [centralize] if training.gradient_centralization else []
    after: list[GradientTransform] = []
    if training.gradient_noise:
        after.append(GradientNoise(deviation=training.gradient_noise, seed=training.seed))
    clip: Clipping = NormClipping(max_norm=training.max_grad_norm)
    if training.clipping == "adaptive":
        clip = AdaptiveClipping(ratio=training.adaptive_clip)
    return GradientPipeline(before=tuple(before), clip=clip, after=tuple(after))
