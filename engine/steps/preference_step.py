"""Direct preference optimisation (DPO, arXiv 2305.18290) over any step, which computes one side of a pair at a time.

With c and r the log-probabilities of a pair's chosen and rejected answers, and c₀ and r₀ those of the base model, the
reference, the loss of a pair is (section 4; ε as in "conservative DPO", from the paper's authors)

    m = β · ((c - c₀) - (r - r₀))
    loss = -(1 - ε) · ln σ(m) - ε · ln σ(-m) + w · (-c / number of chosen targets)

Its gradient needs no graph over both sides. With g = β · ((1 - ε) · σ(-m) - ε · σ(m)),

    d loss = (g + w / number of chosen targets) · d(-c) - g · d(-r)

and -c and -r are sums of cross-entropies. So an update scores both sides of its pairs without a graph, and then takes
one ordinary step over all sides, whose tokens weigh as much as these factors say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engine.data.pairs import Pair
from engine.models.fine_tuning import FineTuning
from engine.models.router_balance import refuse_auxiliary_loss
from engine.plan.step_layout import StepLayout
from engine.steps.failures import Place
from engine.steps.oom_fallback import ClosableStep, FallbackStep
from engine.steps.whole_step import (
    PreferenceFigures,
    StepAbandonedError,
    StepMonitor,
    StepResult,
    TrainingStep,
    Window,
    count_targets,
)

Reference = Mapping[str, tuple[float, float]]
"""Digest of a pair → summed cross-entropies of its chosen and its rejected side under the reference, in nats."""


@dataclass(frozen=True, kw_only=True)
class PreferenceLoss:
    """The loss of a pair as a function of four summed cross-entropies.

    Attributes:
        beta: β, the weight of the margin.
        label_smoothing: ε, the share of pairs whose sides are taken to be swapped.
        sft_weight: w, the weight of the chosen side's mean cross-entropy.
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    sft_weight: float = 0.0

    def margin(self, policy: tuple[float, float], reference: tuple[float, float]) -> float:
        """Computes m from the cross-entropies of chosen and rejected side, each in nats."""
        return self.beta * ((reference[0] - policy[0]) - (reference[1] - policy[1]))

    def value(self, margin: float, chosen: float, targets: int) -> float:
        """Computes the loss.

        Args:
            margin: m.
            chosen: Cross-entropy of the chosen side under the policy, in nats.
            targets: Number of its targets. Without one its cross-entropy is 0.
        """
        smoothed = (1 - self.label_smoothing) * _softplus(-margin) + self.label_smoothing * _softplus(margin)
        return smoothed + self.sft_weight * chosen / max(targets, 1)

    def factors(self, margin: float, targets: int) -> tuple[float, float]:
        """Computes the derivatives of the loss by the cross-entropies of the chosen and of the rejected side."""
        smoothing = self.label_smoothing
        slope = self.beta * ((1 - smoothing) * _sigmoid(-margin) - smoothing * _sigmoid(margin))
        return slope + self.sft_weight / max(targets, 1), -slope


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _softplus(x: float) -> float:
    """-ln σ(-x)."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


class PreferenceStep(FallbackStep):
    """A FallbackStep over preference pairs.

    Args:
        tuning, layout, build, smaller, notify: As in FallbackStep. The steps that are built compute the sides, as
            windows that have weights.
        preference: The loss of a pair.
        reference: Has every pair that a step is run on, at that time.
    """

    def __init__(
        self,
        tuning: FineTuning,
        layout: StepLayout,
        *,
        build: Callable[[StepLayout], ClosableStep],
        smaller: Callable[[StepLayout, Place], StepLayout | None],
        notify: Callable[[str, str], None],
        preference: PreferenceLoss,
        reference: Reference,
    ) -> None:
        refuse_auxiliary_loss(tuning.base.config, "training on preferences")
        super().__init__(tuning, layout, build=build, smaller=smaller, notify=notify)
        self._preference, self._reference = preference, reference

    def run(self, windows: Sequence[Window], scale: float, monitor: StepMonitor) -> StepResult:
        """See TrainingStep. The windows are pairs; `loss_sum` is the sum of their losses.

        Raises:
            StepAbandonedError: the monitor requested a stop.
        """
        pairs = [as_pair(window) for window in windows]
        sides: list[Window] = []
        scores = []
        for done, pair in enumerate(pairs):
            scores.append(self.score(pair, lambda: _go_on(monitor)))
            factors = self._preference.factors(scores[-1].margin, pair.chosen.targets)
            sides += [_weighted(side, f) for side, f in zip((pair.chosen, pair.rejected), factors, strict=True)]
            monitor.progress("log-probabilities", done + 1, len(pairs))
        # All sides in one call: a step that was interrupted resumes within it, and finds the same inputs.
        super().run(sides, scale, monitor)
        return StepResult(
            summed=math.fsum(score.loss for score in scores),
            tokens=count_targets(pairs),
            preferences=mean_figures(scores),
        )

    def score(self, pair: Pair, between: Callable[[], None] = lambda: None) -> PairScore:
        """Scores both sides of a pair without a gradient; `between` is called before each."""
        policy = cross_entropies(self, pair, between)
        margin = self._preference.margin(policy, self._reference[pair.digest])
        targets = pair.chosen.targets
        return PairScore(loss=self._preference.value(margin, policy[0], targets), margin=margin, chosen=policy[0])


@dataclass(frozen=True, kw_only=True)
class PairScore:
    """The figures of one pair."""

    loss: float
    margin: float
    "m, the reward of the chosen side less that of the rejected one."
    chosen: float
    "Summed cross-entropy of the chosen side, in nats."


def mean_figures(scores: Sequence[PairScore]) -> PreferenceFigures:
    """Computes the means over at least one pair. A margin of zero counts as half right."""
    right = sum(0.5 * (score.margin == 0) + (score.margin > 0) for score in scores)
    return PreferenceFigures(
        loss=math.fsum(score.loss for score in scores) / len(scores),
        margin=math.fsum(score.margin for score in scores) / len(scores),
        accuracy=right / len(scores),
    )


def cross_entropies(step: TrainingStep, pair: Pair, between: Callable[[], None] = lambda: None) -> tuple[float, float]:
    """Computes the summed cross-entropies of the chosen and the rejected side, in nats, without a gradient."""
    between()
    chosen = step.loss(pair.chosen)
    between()
    return chosen, step.loss(pair.rejected)


def as_pair(window: Window) -> Pair:
    """Returns the window, which is a pair.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(window, Pair):
        raise TypeError(f"a step over preferences takes pairs, not {type(window).__name__}")
    return window


def _weighted(side: Window, factor: float) -> Window:
    return Window(side.ids, side.starts, side.learnt, np.full(len(side), factor))


def _go_on(monitor: StepMonitor) -> None:
    if monitor.stop_requested():
        raise StepAbandonedError
