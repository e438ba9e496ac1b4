"""Where streamed 4-bit weights wait, what quantising needs, and the bytes that an update moves."""

from __future__ import annotations

import dataclasses

import pytest

from engine.config import StreamSection, TrainingSection
from engine.errors import EliteError
from engine.errors.planning import StreamPlanError
from engine.models.catalogue import find_model
from engine.plan.memory import streamed_ledger, whole_sequence_ledger
from engine.plan.planner import plan_context
from engine.plan.request import PlanRequest, workload_of
from engine.plan.stream_plan import StreamPlan
from engine.plan.weight_lines import QUANTISING
from tests.plan.machines import with_card

QWEN = find_model("qwen3-32b")
PACKED = 16.1e9
"""Bytes of its decoder layers: 31.2e9 weights of 4.127 bits."""


def request(ram, spec=QWEN, **stream):
    machine = with_card("rtx-4080", ram=ram)
    return PlanRequest.of(
        machine, spec, "nf4", training=TrainingSection(step="streamed"), stream=StreamSection(**stream)
    )


def bytes_of(row, where, *, without=()):
    return sum(part.bytes for part in row.parts if part.where == where and part.name not in without)


@pytest.mark.parametrize(("ram", "home"), [(64, "host"), (16, "disk")])
def test_weights_wait_on_the_disk_where_ram_is_short(ram, home):
    row = plan_context(request(ram), 8192)
    assert row.fits, row.reason
    assert row.layout.stream.weights == "nf4-streamed"
    assert row.layout.stream.weights_home == home
    assert (bytes_of(row, "host") > PACKED) == (home == "host")


def test_the_disk_takes_longer_and_less_ram():
    rows = [plan_context(request(64, weights="streamed", weights_home=home), 8192) for home in ("host", "disk")]
    host, disk = rows
    assert host.host_peak_bytes - disk.host_peak_bytes > 0.9 * PACKED
    assert disk.step_seconds > host.step_seconds
    # Each layer is copied for its forward and its backward pass, but for the two that stay on the GPU between them.
    assert host.weights_moved_bytes == pytest.approx(2 * PACKED * 62 / 64, rel=0.01)


def test_the_time_says_what_is_moved():
    row = plan_context(request(64), 8192)
    [waiting] = [part for part in row.time if part.name == "waiting for transfers"]
    assert "B of weights" in waiting.formula
    assert row.as_json()["moved_bytes"] == row.moved_bytes > 0


def test_quantising_counts_where_the_step_needs_less():
    """One layer in 16 bits comes before the step's buffers: the two do not add up."""
    work = workload_of(request(64), 1024)
    plan = StreamPlan(tile=256, key_block=256, weights="nf4-streamed", hidden_home="gpu")
    parts = {part.name: part.bytes for part in streamed_ledger(work, plan).parts}
    embedding = 2 * QWEN.vocab_size * QWEN.hidden_size
    assert parts[QUANTISING] == pytest.approx(embedding, rel=0.05)
    longer = workload_of(request(64), 32768)
    plan = dataclasses.replace(plan, tile=4096, key_block=4096, hidden_home="host")
    assert QUANTISING not in {part.name for part in streamed_ledger(longer, plan).parts}
    stored = dataclasses.replace(work, spec=dataclasses.replace(QWEN, stored_in_4_bits=True))
    plan = StreamPlan(tile=256, key_block=256, weights="nf4-streamed", hidden_home="gpu")
    assert QUANTISING not in {part.name for part in streamed_ledger(stored, plan).parts}


@pytest.mark.parametrize("on_gpu", [False, True])
def test_quantising_and_the_step_do_not_add_up(on_gpu):
    """A layer of experts in its own format is larger than all that the step holds: its size alone is what is needed.

    The step's host memory counts with what its allocator loses, which on a CPU is the host's.
    """
    sparse = dataclasses.replace(find_model("qwen3-coder-30b-a3b"), layers=2, sparse_layers=2, vocab_size=2000)
    sparse = dataclasses.replace(sparse, full_attention_layers=2)
    work = dataclasses.replace(workload_of(request(64, sparse), 64), on_gpu=on_gpu, compute_type="fp32")
    lines = {part.name: part.bytes for part in whole_sequence_ledger(work, "nf4").parts if part.where == "host"}
    own = 4 * sparse.layer_parameters
    outside = ("the training process itself", "freed memory that the heap keeps")
    assert sum(size for name, size in lines.items() if name not in outside) == own
    assert (lines.get("allocator slack", 0) > 1e6) == (not on_gpu)


def test_experts_are_not_read_from_the_disk():
    sparse = find_model("qwen3-coder-30b-a3b")
    for ram in (12, 20, 32):
        found = plan_context(request(ram, sparse), 8192)
        assert not found.fits or found.layout.stream is None or found.layout.stream.weights_home == "host"
    with pytest.raises(EliteError, match="weights_home"):
        plan_context(request(32, sparse, weights_home="disk"), 8192)


@pytest.mark.parametrize("weights", ["resident", "nf4", "streamed"])
def test_only_streamed_four_bit_weights_are_read_from_the_disk(weights):
    with pytest.raises(StreamPlanError, match="weights_home"):
        StreamPlan(weights=weights, weights_home="disk")
