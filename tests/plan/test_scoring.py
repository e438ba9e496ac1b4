"""The plan of a DPO update: both sides of a pair, each with one more forward, in the memory of a step on one side."""

from __future__ import annotations

import pytest
from plan.machines import with_card

from engine.config import TrainingSection
from engine.models.catalogue import find_model
from engine.plan.planner import plan_context
from engine.plan.request import PlanRequest

SPEC = find_model("qwen2.5-coder-1.5b")


def planned(objective, context, **training):
    section = TrainingSection(objective=objective, **training)
    return plan_context(PlanRequest.of(with_card("rtx-4090"), SPEC, training=section), context)


@pytest.mark.parametrize(("context", "step"), [(131_072, "streamed"), (8_192, "whole")])
def test_an_update_takes_two_sides_and_their_forwards(context, step):
    plain, pair = planned("sft", context, step=step), planned("dpo", context, step=step)
    assert plain.layout == pair.layout
    assert (plain.gpu_peak_bytes, plain.host_peak_bytes) == (pair.gpu_peak_bytes, pair.host_peak_bytes)
    assert (plain.windows_per_step, pair.windows_per_step) == (1, 2)
    # A forward is between a quarter (attention kept) and a third of a step, as operations count.
    assert 2 * 1.2 < pair.step_seconds / plain.step_seconds < 2 * 1.4
    assert pair.time[:-1] == plain.time
    assert pair.time[-1].name == "scoring both answers"


def test_more_tokens_an_update_are_more_pairs():
    assert planned("dpo", 8_192, tokens_per_update=65_536).windows_per_step == 8
