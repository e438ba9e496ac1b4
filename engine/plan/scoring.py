"""Time of DPO's scoring: each side of a pair takes one more forward, before the step that has its gradient."""

from __future__ import annotations

from collections.abc import Sequence

from engine.plan.step_layout import StepLayout
from engine.plan.time import UPDATE, TimePart

_KEPT_ATTENTION, _ATTENTION_AGAIN = 0.25, 0.3
"Share of a streamed step that is its forward, as in engine.plan.time, with and without kept attention outputs."


def scoring_part(parts: Sequence[TimePart], layout: StepLayout) -> TimePart:
    """Returns the forward that scores a window, from the parts of its step.

    The base model's scores, the reference, cost the same once a run, and are no part of a step.
    """
    if layout.stream is not None:
        share = _KEPT_ATTENTION if layout.stream.stash else _ATTENTION_AGAIN
    else:
        share = 1 / 4 if layout.recompute else 1 / 3
    seconds = share * sum(part.seconds for part in parts if part.name != UPDATE)
    return TimePart(
        name="scoring both answers", seconds=seconds, formula=f"one more forward, {share:.2f} of a step's passes"
    )
