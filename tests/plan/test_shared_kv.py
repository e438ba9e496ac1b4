"""Layers of different heads, layers that share keys and values, and layers' own inputs: bytes counted and held.

Held is what a streamed step on a CPU keeps in its buffers after a real step, read from the tensors themselves.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from engine.config import DistributedSection
from engine.errors import EliteError
from engine.hardware.machine import GIB
from engine.hardware.target import target_machine
from engine.models import families
from engine.models.catalogue import find_model
from engine.models.spec import as_spec
from engine.plan import tile_peaks
from engine.plan.memory import streamed_ledger, whole_sequence_ledger
from engine.plan.planner import plan_context
from engine.plan.request import PlanRequest
from engine.plan.stream_plan import StreamPlan
from engine.plan.workload import Workload
from engine.streaming.decoder import Decoder
from engine.streaming.step import StreamedStep
from engine.verify.observed_shape import observed_shape
from tests.plan.live_bytes import LiveBytes

NEAR, ALL = "sliding_attention", "full_attention"
SIZES = {
    "vocab_size": 61,
    "vocab_size_per_layer_input": 61,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "sliding_window": 12,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS = {
    "two shapes": ("gemma4_text", {
        "hidden_size_per_layer_input": 0,
        "num_key_value_heads": 4,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
        "global_head_dim": 20,
        "layer_types": [NEAR, NEAR, ALL, NEAR, ALL],
    }),
    "shared": ("gemma4_text", {
        "hidden_size_per_layer_input": 6,
        "num_key_value_heads": 2,
        "global_head_dim": 20,
        "num_kv_shared_layers": 3,
        "layer_types": [NEAR, ALL, NEAR, ALL, NEAR, NEAR, ALL],
    }),
    "first owners": ("gemma4_text", {
        "hidden_size_per_layer_input": 6,
        "num_key_value_heads": 2,
        "global_head_dim": 20,
        "num_kv_shared_layers": 2,
        "layer_types": [NEAR, ALL, NEAR, ALL],
    }),
    "streams": ("gemma3n_text", {
        "hidden_size_per_layer_input": 6,
        "num_key_value_heads": 2,
        "num_kv_shared_layers": 2,
        "altup_num_inputs": 3,
        "laurel_rank": 4,
        "activation_sparsity_pattern": [0.0] * 5,
        "layer_types": [NEAR, NEAR, ALL, NEAR, ALL],
    }),
}  # fmt: skip
PLANS = {
    "saved": StreamPlan(tile=16, key_block=32, loss_piece=16),
    "again": StreamPlan(tile=16, key_block=32, loss_piece=16, stash=False, checkpoint_every=2),
}


# A context as long as the window's ring, and a longer one.
@pytest.mark.parametrize(("plan", "context"), [("saved", 24), ("saved", 130), ("again", 130)])
@pytest.mark.parametrize("name", MODELS)
def test_what_a_step_keeps_is_what_the_ledger_counts(name, plan, context, monkeypatch):
    family, settings = MODELS[name]
    monkeypatch.setitem(families.FAMILIES, family, families.Family())
    config = AutoConfig.for_model(family, **SIZES, **settings, num_hidden_layers=len(settings["layer_types"]))
    spec = as_spec(observed_shape(config, adapts_mlp=True), name="", family=family)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    model.config._experts_implementation = "eager"
    work = Workload(spec=spec, context=context, compute_type="fp32", lora_parameters=1, on_gpu=False)
    counted = {}
    for part in streamed_ledger(work, PLANS[plan]).parts:
        counted[part.name] = counted.get(part.name, 0) + part.bytes
    with StreamedStep(model, PLANS[plan], device=torch.device("cpu")) as step:
        step.run(torch.randint(3, 61, (context,)))
        held = buffers(step.streamed.workspace)
    for kind, names in KINDS.items():
        found = sum(size for part, size in counted.items() if part in names)
        assert held[kind] == found, (kind, held[kind], found)


KINDS = {
    "keys and values": (
        "keys and values of one layer",
        "keys and values that later layers attend to",
        "their gradients, fp32",
        "a windowed layer's keys and values",
        "a windowed layer's gradients of them, fp32",
    ),
    "saved": ("stash: attention outputs and logsumexp", "stash: keys and values"),
    "inputs": ("inputs of single layers",),
    "hidden": ("hidden states", "gradient stream"),
    "slots": ("tiles in flight between the homes",),
}


def buffers(workspace):
    def size(tensors):
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def arrays(found):
        return sum(array.capacity * array.width * array.dtype.itemsize for array in found)

    hidden, inputs, saved = workspace.hidden, workspace.layer_inputs, workspace.attention.saved
    readers = [*hidden._readers, hidden._top_reader, *([inputs._reader] if inputs._reader else [])]
    readers += [] if saved is None else saved._readers.values()
    caches = [tensor for cache in workspace.attention.caches for tensor in (cache._k, cache._v, cache._dk, cache._dv)]
    return {
        "keys and values": size(caches),
        "saved": 0 if saved is None else arrays(saved._all_arrays()),
        "inputs": arrays(inputs._arrays),
        "hidden": arrays(hidden._all_arrays()),
        "slots": size(slot for reader in readers for slot in reader._slots),
    }


def test_gemma_4_e2b_keeps_the_keys_of_its_two_owners():
    spec = find_model("gemma-4-e2b")
    work = Workload(spec=spec, context=131_072, compute_type="bf16", lora_parameters=1)
    parts = {part.name: part for part in streamed_ledger(work, StreamPlan(tile=4096, key_block=16_384)).parts}
    # One owner of each type, 2 × 1 head × 256 and 2 × 1 head × 512, in bf16.
    assert parts["keys and values that later layers attend to"].bytes == 131_072 * (512 + 1024) * 2
    assert parts["inputs of single layers"].bytes == 131_072 * 35 * 256 * 2


def of_ranks(spec, strategy="auto"):
    request = PlanRequest.of(target_machine("h100-sxm*4", ram=512 * GIB), spec)
    return dataclasses.replace(request, ranks=4, distributed=DistributedSection(strategy=strategy))


def test_ranks_share_a_window_only_where_the_step_lets_them():
    plain = find_model("qwen2.5-coder-1.5b")
    alone = [find_model("gemma-4-e2b"), dataclasses.replace(plain, softcap=50.0)]
    for spec in (plain, find_model("gemma-4-12b"), *alone):
        assert plan_context(of_ranks(spec), 2**20).layout.window_ranks == (1 if spec in alone else 4)
    for spec in alone:
        with pytest.raises(EliteError, match="ring cannot be used here"):
            plan_context(of_ranks(spec, "ring"), 2**20)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("trained", [False, True])
def test_what_gives_layers_their_inputs_is_counted(dtype, trained, monkeypatch):
    """As many tokens as are embedded at once, whose inputs are far larger than all else; live bytes of torch."""
    tokens = 256
    monkeypatch.setattr(tile_peaks, "EMBEDDED_AT_ONCE", tokens)
    monkeypatch.setitem(families.FAMILIES, "gemma4_text", families.Family())
    layer_types = [NEAR, ALL] * 4
    config = AutoConfig.for_model(
        "gemma4_text",
        **{**SIZES, "hidden_size": 16, "num_attention_heads": 1, "num_key_value_heads": 1, "global_head_dim": 8},
        hidden_size_per_layer_input=64,
        layer_types=layer_types,
        num_hidden_layers=len(layer_types),
    )
    spec = as_spec(observed_shape(config, adapts_mlp=True), name="", family="gemma4_text")
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).requires_grad_(trained)
    decoder = Decoder(model)
    ids, positions = torch.randint(3, 61, (1, tokens)), torch.arange(tokens)[None]
    live = LiveBytes("cpu")
    live.ignore(*model.parameters())
    with live, torch.set_grad_enabled(trained):
        x, inputs = decoder.embed_for_layers(ids, positions)
        if trained:
            ends = [x, *inputs]
            torch.autograd.backward(ends, [torch.ones_like(end) for end in ends])
    work = Workload(
        spec=spec,
        context=tokens,
        compute_type="fp32" if dtype == torch.float32 else "bf16",
        lora_parameters=1,
        on_gpu=True,
        master_home="gpu" if trained else None,
    )
    moments = tile_peaks.tile_peaks(work, stash=True)
    counted = next(moment.bytes(tokens, 0, 0) for moment in moments if moment.at == "at the embedding")
    assert 0.8 * counted < live.peak < 1.05 * counted


def test_the_table_of_layers_inputs_has_a_gradient_too():
    spec = find_model("gemma-4-e2b")
    table = spec.vocab_size * spec.layers * spec.layer_input
    work = Workload(spec=spec, context=4096, compute_type="bf16", lora_parameters=0, master_home="host")
    for ledger in (streamed_ledger(work, StreamPlan(tile=1024)), whole_sequence_ledger(work, "resident")):
        assert ledger.peak("gpu") > spec.parameters * 2 + table * (2 + 4)
