"""Held-out loss: how well the model predicts files that it was not trained on."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from engine.models.head import split_head, summed_cross_entropy

if TYPE_CHECKING:
    from peft import PeftModel

    from engine.training.step import Window
    from engine.training.updates import WindowSource


def perplexity(loss: float) -> float:
    """exp(loss): as uncertain as a choice among this many equally likely tokens. `loss` is in nats a token."""
    return math.exp(loss) if loss < 700 else math.inf


@dataclass(frozen=True, kw_only=True)
class HeldOutLoss:
    """Result of one evaluation."""

    loss: float
    "Mean cross-entropy a token, nats. Every token weighs the same, whatever its window's length."
    tokens: int
    seconds: float

    @property
    def perplexity(self) -> float:
        """See `perplexity`."""
        return perplexity(self.loss)


def evaluate(
    model: PeftModel,
    windows: WindowSource,
    *,
    max_tokens: int,
    progress: Callable[[int, int], None],
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
) -> HeldOutLoss:
    """Scores at most `max_tokens` tokens, taken evenly from all held-out windows: the same ones at every call.

    Draws no random number and leaves the model in the mode that it was in. For the base model's score, call
    it within `model.disable_adapter()`.

    Args:
        model: Scored as it is.
        windows: The held-out ones; at least one.
        max_tokens: Targets scored at most.
        progress: Called with windows done and windows in all; may raise to abandon the evaluation.
        autocast: The numbers that the products are computed in.
    """
    decoder, head = split_head(model.get_base_model())
    device = model.get_base_model().device
    chosen = list(_choose(windows, max_tokens))
    started = time.monotonic()
    total, tokens = 0.0, 0
    training = model.training
    model.eval()
    try:
        for done, window in enumerate(chosen):
            progress(done, len(chosen))
            ids = torch.as_tensor(window, device=device)
            with torch.no_grad(), autocast():
                hidden = decoder(input_ids=ids[None, :-1], use_cache=False).last_hidden_state[0]
                total += summed_cross_entropy(hidden, head, ids[1:]).item()
            tokens += len(ids) - 1
    finally:
        model.train(training)
    progress(len(chosen), len(chosen))
    loss = total / tokens if tokens else math.nan
    return HeldOutLoss(loss=loss, tokens=tokens, seconds=time.monotonic() - started)


def _choose(windows: WindowSource, max_tokens: int) -> Iterator[Window]:
    """Windows at even distances, the last one cut where `max_tokens` targets are reached."""
    longest = max(len(windows[index]) for index in range(len(windows)))
    count = min(len(windows), math.ceil(max_tokens / max(1, longest - 1)))
    left = max_tokens
    for index in range(count):
        window = windows[index * len(windows) // count][: left + 1]
        if len(window) > 1:
            left -= len(window) - 1
            yield window
        if left <= 0:
            return
