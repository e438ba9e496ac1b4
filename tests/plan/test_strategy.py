"""ZeRO runs with what it can do, and refuses by name what it cannot."""

from __future__ import annotations

import pytest

from engine.config import from_mapping
from engine.plan.optimizations import optimizations
from engine.plan.strategy import NOT_WITH_ZERO

WITH_ZERO = {
    "data",
    "lora",
    "recovery",
    "training.compile",
    "training.curriculum",
    "training.label_smoothing",
    "training.lr_scaling",
    "training.memory_tuning",
    "training.micro_batch",
    "training.neftune_alpha",
    "training.recompute",
    "training.schedule",
    "training.shifted_attention",
    "training.tiled_mlp",
    "model.fused_kernels",
    "model.kv_heads",
    "model.rope_scaling",
}
"""Sections and settings that act before the gradient, on the model or on the rate: DeepSpeed leaves them alone."""
ELSEWHERE = {"stream", "training.step", "training.activation_bits", "distributed.strategy", "distributed.offload"}
"""Of other ways to compute a step, which a conflict of the registry refuses."""


@pytest.mark.parametrize("row", optimizations(), ids=lambda row: row.id)
def test_every_switch_is_known_to_work_with_zero_or_refused(row):
    """A new setting that acts on gradients would otherwise be ignored without a word."""
    for setting in row.switch_on:
        known = WITH_ZERO | ELSEWHERE | set(NOT_WITH_ZERO)
        assert setting in known or setting.partition(".")[0] in known, setting


@pytest.mark.parametrize("setting", NOT_WITH_ZERO)
def test_the_plain_values_are_the_defaults(setting):
    section, _, name = setting.partition(".")
    assert getattr(getattr(from_mapping({}), section), name) in NOT_WITH_ZERO[setting]
