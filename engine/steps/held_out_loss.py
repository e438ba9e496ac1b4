"""Held-out loss, the loss on files that the model was not trained on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.data.window_source import WindowSource
    from engine.steps.whole_step import PreferenceFigures, Window


def perplexity(loss: float) -> float:
    """Computes exp(loss), the number of equally likely tokens of the same uncertainty. `loss` is in nats a token."""
    return math.exp(loss) if loss < 700 else math.inf


@dataclass(frozen=True, kw_only=True)
class HeldOutLoss:
    """Result of one evaluation."""

    loss: float
    "Mean cross-entropy a token, in nats. Every token has the same weight, in short and long windows alike."
    tokens: int
    seconds: float
    preferences: PreferenceFigures | None = None
    "Of held-out preference pairs; `loss` is then that of their chosen answers."

    @property
    def objective(self) -> float:
        """What training minimises: the preference loss, if it is over pairs, else `loss`."""
        return self.loss if self.preferences is None else self.preferences.loss

    @property
    def perplexity(self) -> float:
        """See `perplexity`."""
        return perplexity(self.loss)


def evaluate(
    loss_of: Callable[[Window], float],
    windows: WindowSource,
    *,
    max_tokens: int,
    progress: Callable[[int, int], None],
) -> HeldOutLoss:
    """Scores at most `max_tokens` tokens, taken evenly from all held-out windows, the same ones at every call.

    For the base model's score, call it within `model.disable_adapter()`.

    Args:
        loss_of: Returns the summed cross-entropy of a window (`TrainingStep.loss`).
        windows: The held-out windows; at least one.
        max_tokens: Most targets to score.
        progress: Called with windows done and windows in all; may raise to abandon the evaluation.
    """
    chosen = [window for _, window in choose_windows(windows, max_tokens)]
    started = time.monotonic()
    total, tokens = 0.0, 0
    for done, window in enumerate(chosen):
        progress(done, len(chosen))
        total += loss_of(window)
        tokens += window.targets
    progress(len(chosen), len(chosen))
    loss = total / tokens if tokens else math.nan
    return HeldOutLoss(loss=loss, tokens=tokens, seconds=time.monotonic() - started)


def choose_windows(windows: WindowSource, max_tokens: int) -> Iterator[tuple[int, Window]]:
    """Yields evenly spaced windows with their indices; the last one is truncated at `max_tokens` targets in all."""
    most = max(windows[index].targets for index in range(len(windows)))
    count = min(len(windows), math.ceil(max_tokens / max(1, most)))
    left = max_tokens
    for number in range(count):
        index = number * len(windows) // count
        window = windows[index].first_targets(left)
        if window.targets > 0:
            left -= window.targets
            yield index, window
        if left <= 0:
            return
