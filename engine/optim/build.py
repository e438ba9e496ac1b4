"""Puts a run's way of updating together: optimiser, schedule, what happens to gradients, what follows each update."""

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
from engine.optim.lookahead import Lookahead
from engine.optim.noise import GradientNoise
from engine.optim.schedule import Schedule, averaging_start, make_schedule, peak_rate

if TYPE_CHECKING:
    from engine.config import RunConfig, TrainingSection
    from engine.models.fine_tuning import FineTuning


class Stateful(Protocol):
    """Something that a checkpoint has to bring back: values are tensors and what JSON can hold."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes on what `state_dict` gave."""


class Follower(Stateful, Protocol):
    """Acts on the weights after every update that was really made (fp16 skips those that overflow)."""

    def after_step(self) -> None:
        """The optimiser has made an update."""


@dataclass(frozen=True, kw_only=True)
class Updating:
    """How a run turns gradients into weights."""

    optimizer: Optimizer
    "Calls the followers itself, after each update."
    schedule: Schedule
    gradients: GradientPipeline
    average: AdapterAverage | None
    "What is scored and kept instead of the last weights."
    stateful: Mapping[str, Stateful]


def build_updating(tuning: FineTuning, config: RunConfig, *, total_steps: int, tokens_per_update: int) -> Updating:
    """The composition that a configuration asks for.

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
