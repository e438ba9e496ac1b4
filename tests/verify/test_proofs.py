"""Every proof passes, or says why it cannot run here; and fails once its implementation does nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from engine.plan.optimizations import find_optimization, optimizations
from engine.verify.runner import prove
from tests.verify import mutations

ROOT = Path(__file__).parents[2]
LONG = {
    "activation_offload",
    "lora_plus",
    "lr_range_test",
    "powersgd",
    "ring_attention",
    "streamed_backprop",
    "torch_compile",
    "zero2_offload",
    "zero3",
}
"""Proofs of several seconds, or of several processes."""
MIDDLING = {
    "adamw_8bit",
    "dynamic_curriculum",
    "early_stopping",
    "gqa",
    "gradient_checkpointing",
    "qlora",
    "selective_checkpointing",
    "sequence_packing",
    "swa",
    "tiled_mlp",
}
"""Proofs of more than a second, which every run of the tests does once, and `make test-all` mutated as well."""
IN_CHILDREN = {
    "ring_attention",
    "powersgd",
    "zero3",
    "zero2_offload",
    "torch_compile",
    "fused_kernels",
    "memory_tuning",
}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def ids(slow):
    return [pytest.param(row.id, marks=pytest.mark.slow if row.id in slow else ()) for row in optimizations()]


def verdict_of(name):
    return prove(find_optimization(name), DEVICE)


@pytest.mark.parametrize("name", ids(LONG))
def test_proof(name):
    verdict = verdict_of(name)
    assert verdict.status in ("passed", "unavailable"), verdict.reason
    assert verdict.evidence if verdict.status == "passed" else verdict.reason
    assert "\n" not in verdict.evidence + verdict.reason


def test_each_optimisation_has_a_mutation():
    assert set(mutations.MUTATIONS) == {row.id for row in optimizations()}


@pytest.mark.parametrize("name", ids(LONG | MIDDLING))
def test_proof_fails_when_the_implementation_does_nothing(name, monkeypatch, tmp_path):
    if name in IN_CHILDREN:
        # A new process reads this before anything else; its modules then find the mutated ones.
        hook = f"from tests.verify import mutations\nmutations.apply({name!r})\n"
        (tmp_path / "sitecustomize.py").write_text(hook)
        paths = [str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in paths if path))
    else:
        mutations.apply(name, monkeypatch.setattr)
    verdict = verdict_of(name)
    if verdict.status == "unavailable":
        pytest.skip(verdict.reason)
    assert verdict.status == "failed", verdict.evidence
