"""Projects a run's final held-out loss with the engine, again after each evaluation."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

from elite_tui.format.figures import number_in_words

if TYPE_CHECKING:
    from elite_tui.runs.view import RunView
    from engine.evaluation.projection import Projection


def projected_perplexity(view: RunView) -> tuple[str, ...]:
    """Returns the projected final perplexity in words, from long to short; empty with too few evaluations."""
    step = view.step
    if view.ended or step is None or not step.step:
        return ()
    scores = view.history.held_out
    points = tuple(
        (tokens, loss)
        for tokens, loss in zip(scores["tokens"], scores["loss"], strict=True)
        if math.isfinite(tokens) and math.isfinite(loss)
    )
    # Rounded tokens of full steps, so that each step hits the cache.
    a_step = view.history.tokens / step.step
    found = _project(points, float(f"{a_step * step.total_steps:.3g}"))
    if found is None:
        return ()
    middle, low, high = (number_in_words(math.exp(min(loss, 50)), 3) for loss in (found.loss, found.low, found.high))
    return f"{middle} ({low} to {high}) projected", f"{middle} projected"


@functools.lru_cache(maxsize=32)
def _project(points: tuple[tuple[float, float], ...], tokens: float) -> Projection | None:
    from engine.evaluation.projection import project

    return project(points, tokens)
