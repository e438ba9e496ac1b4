"""Where a run's held-out loss is heading: the engine's projection, made anew when there is another score."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

from elite_tui.format.figures import number_in_words

if TYPE_CHECKING:
    from elite_tui.runs.view import RunView
    from engine.evaluation.projection import Projection


def projected_perplexity(view: RunView) -> tuple[str, ...]:
    """The perplexity at the run's end, projected, in words from long to short; nothing where too little is known."""
    step = view.step
    if view.ended or step is None or not step.step:
        return ()
    scores = view.history.held_out
    points = tuple(
        (tokens, loss)
        for tokens, loss in zip(scores["tokens"], scores["loss"], strict=True)
        if math.isfinite(tokens) and math.isfinite(loss)
    )
    # In tokens of full steps: a step more must not be another question.
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
