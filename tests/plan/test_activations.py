"""The lists of what a layer holds, against the allocations that the real layers make."""

from __future__ import annotations

import dataclasses

import pytest

from engine.models.catalogue import find_model
from engine.models.config_reader import spec_from_config
from engine.models.families import supporting
from engine.models.loss_chunk import loss_chunk
from engine.plan.memory import streamed_ledger
from engine.plan.stream_plan import StreamPlan
from engine.plan.tile_peaks import tile_peaks
from engine.plan.window_peaks import window_peaks
from engine.plan.workload import Workload
from tests.plan.one_tile import count, count_window

OF_THE_KERNEL = ("kernel's query gradients, fp32", "row sums", "gradients of each query head's keys and values")
"""Held by attention kernels, which do not run without a GPU."""

SHAPES = [
    # model, tile, key block: with wide and narrow MLPs, grouped heads and not, blocks that matter and not
    ("qwen2.5-coder-1.5b", 8192, 32768),
    ("qwen2.5-coder-0.5b", 2048, 65536),
    ("qwen2.5-coder-7b", 4096, 16384),
    ("deepseek-coder-1.3b", 8192, 32768),
    ("codellama-7b", 4096, 4096),
    ("phi-2", 4096, 4096),
    ("phi-2", 2048, 32768),
    ("starcoder2-3b", 4096, 16384),
    ("qwen3-1.7b", 4096, 16384),
]


def _predicted(spec, plan, phase, **options):
    work = Workload(spec=spec, context=1, compute_type="bf16", lora_parameters=1, **options)
    sizes = []
    for moment in tile_peaks(work, stash=plan.stash):
        token = sum(size for name, size in moment.token if name not in OF_THE_KERNEL)
        key = sum(size for name, size in moment.key if name not in OF_THE_KERNEL)
        if moment.phase == phase:
            sizes.append(plan.tile * token + 2 * plan.key_block * key)
    return max(sizes)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("stash", [True, False])
@pytest.mark.parametrize(("model", "tile", "key_block"), SHAPES)
def test_a_tile_through_a_layer_holds_what_the_lists_say(model, tile, key_block, stash, fused):
    spec = find_model(model)
    if fused and spec.family not in supporting("fused"):
        return
    plan = StreamPlan(tile=tile, key_block=key_block, stash=stash)
    counted = count(spec, plan, fused=fused)
    assert _predicted(spec, plan, "backward", fused_kernels=fused) == pytest.approx(counted.backward, rel=0.03)
    forward = _predicted(spec, plan, "forward", fused_kernels=fused) - spec.hidden_size * 2 * tile
    assert forward == pytest.approx(counted.forward, rel=0.05)


@pytest.mark.parametrize("stash", [True, False])
@pytest.mark.parametrize(("tile", "key_block"), [(16384, 65536), (4096, 16384), (1024, 16384)])
def test_a_windowed_layer_holds_a_ring_and_what_the_lists_say(tile, key_block, stash):
    spec = find_model("starcoder2-3b")
    plan = StreamPlan(tile=tile, key_block=key_block, stash=stash)
    counted = count(spec, plan, fused=False)
    work = Workload(spec=spec, context=2 * key_block + tile, compute_type="bf16", lora_parameters=1)
    ring = [line.bytes for line in streamed_ledger(work, plan).lines if line.name.startswith("a windowed layer's")]
    assert sum(ring) == counted.stores
    assert _predicted(spec, plan, "backward", fused_kernels=False) == pytest.approx(counted.backward, rel=0.04)
    forward = _predicted(spec, plan, "forward", fused_kernels=False) - spec.hidden_size * 2 * tile
    assert forward == pytest.approx(counted.forward, rel=0.05)


@pytest.mark.parametrize("tile", [4096, 2048])
def test_where_attention_is_the_peak_a_window_takes_no_more_than_the_lists_say(tile):
    """Its edge is computed from reversed copies; the lists take them to be as long as the tile."""
    spec = dataclasses.replace(find_model("starcoder2-3b"), intermediate_size=256)
    plan = StreamPlan(tile=tile, key_block=4096)
    counted = count(spec, plan, fused=False)
    for phase in ("forward", "backward"):
        assert getattr(counted, phase) <= 1.02 * _predicted(spec, plan, phase, fused_kernels=False)


NARROW = {"hidden_size": 256, "heads": 4, "head_dim": 64, "intermediate_size": 1024, "vocab_size": 512, "layers": 3}
WINDOWS = [
    # Without the families that autocast treats otherwise on a GPU, which were measured there (test_measured.py).
    ("qwen2.5-coder-0.5b", {"kv_heads": 2, "vocab_size": 24_576, "layers": 1}),  # where the logits are the most
    ("qwen2.5-coder-0.5b", {"kv_heads": 2}),
    ("qwen2.5-coder-0.5b", {"kv_heads": 1, "intermediate_size": 512}),
    ("deepseek-coder-1.3b", {"kv_heads": 4}),
    ("qwen3-1.7b", {"kv_heads": 2}),
]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize(("model", "shape"), WINDOWS)
def test_a_window_computed_whole_holds_what_the_lists_say(model, shape, recompute, fused):
    if fused and find_model(model).family not in supporting("fused"):
        return
    spec = dataclasses.replace(find_model(model), **{**NARROW, **shape})
    spec = dataclasses.replace(spec, full_attention_layers=spec.layers, sliding_window=None)
    tokens = 2048
    counted = count_window(spec, tokens, recompute=recompute, fused=fused)
    work = Workload(spec=spec, context=tokens, compute_type="bf16", lora_parameters=1, fused_kernels=fused)
    piece = min(loss_chunk(spec.vocab_size), tokens)
    moments = window_peaks(work, recompute=recompute, pieces=piece < tokens)
    predicted = max(moment.bytes(tokens, 0, piece * spec.vocab_size) for moment in moments)
    tables = 2 * tokens * spec.head_dim * 2
    copies = 2 * spec.lora_parameters(16)
    assert predicted + tables + copies == pytest.approx(counted, rel=0.05)


_EXPERTS = {
    "mixtral": {"intermediate_size": 512, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {
        "intermediate_size": 1024,
        "num_experts": 8,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 192,
    },
}


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("family", _EXPERTS)
def test_experts_hold_what_the_lists_say(family, recompute):
    shape = {
        "hidden_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "vocab_size": 512,
    }
    spec = spec_from_config({"model_type": family, **shape, **_EXPERTS[family]}, name="tiny")
    tokens = 512
    counted = count_window(spec, tokens, recompute=recompute, fused=False)
    work = Workload(spec=spec, context=tokens, compute_type="bf16", lora_parameters=1, fused_kernels=False)
    moments = window_peaks(work, recompute=recompute, pieces=False)
    predicted = max(moment.bytes(tokens, 0, tokens * spec.vocab_size) for moment in moments)
    tables, copies = 2 * tokens * spec.head_dim * 2, 2 * spec.lora_parameters(16)
    assert predicted + tables + copies == pytest.approx(counted, rel=0.08)


@pytest.mark.parametrize("targets", [["all-linear"], ["all-linear", "experts"]])
@pytest.mark.parametrize("changes", [{}, {"expert_size": 1536, "experts_per_token": 6}])
def test_a_tile_through_experts_holds_what_the_lists_say(changes, targets):
    spec = dataclasses.replace(find_model("qwen3-coder-30b-a3b"), **changes)
    plan = StreamPlan(tile=4096, key_block=16384)
    counted = count(spec, plan, fused=False, targets=targets)
    options = {"fused_kernels": False, "adapts_experts": "experts" in targets}
    assert _predicted(spec, plan, "forward", **options) == pytest.approx(counted.forward, rel=0.04)
    assert _predicted(spec, plan, "backward", **options) == pytest.approx(counted.backward, rel=0.04)


WIDE = [
    ("qwen2.5-coder-0.5b", {"kv_heads": 2, "vocab_size": 65_536, "layers": 1}),  # the embedding's gradient
    ("qwen2.5-coder-7b", {"kv_heads": 2, "vocab_size": 65_536, "layers": 1}),  # not tied to the head
    ("qwen2.5-coder-0.5b", {"kv_heads": 2, "hidden_size": 1024, "intermediate_size": 4096}),  # the layers'
]


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize(
    ("model", "shape", "tokens"),
    [
        *((*case, tokens) for case in WINDOWS for tokens in (512, 2048)),
        *((*case, 512) for case in WIDE),
        *(pytest.param(*case, 2048, marks=pytest.mark.slow) for case in WIDE),
    ],
)
def test_a_window_that_trains_every_weight_holds_what_the_lists_say(model, shape, recompute, tokens):
    spec = dataclasses.replace(find_model(model), **{**NARROW, **shape})
    spec = dataclasses.replace(spec, full_attention_layers=spec.layers, sliding_window=None)
    counted = count_window(spec, tokens, recompute=recompute, fused=True, full=True)
    work = Workload(spec=spec, context=tokens, compute_type="bf16", lora_parameters=0, lora_rank=0, master_home="gpu")
    piece = min(loss_chunk(spec.vocab_size), tokens)
    moments = window_peaks(work, recompute=recompute, pieces=piece < tokens)
    predicted = max(moment.bytes(tokens, 0, piece * spec.vocab_size) for moment in moments)
    assert predicted + 2 * tokens * spec.head_dim * 2 == pytest.approx(counted, rel=0.05)
