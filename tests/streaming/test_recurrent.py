"""Recurrent layers, tile by tile, give the gradient of the whole sequence.

The reference is transformers' own model by ordinary backpropagation, each document by itself, in fp64. Its gated delta
rule is replaced by the definition: one token after another. The streamed step runs transformers' chunked rule, whose
chunks of 64 the tiles' borders cut anywhere.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F  # noqa: N812
from transformers import AutoConfig, AutoModelForCausalLM

from engine.config import from_mapping
from engine.errors import EliteError
from engine.generation.forward import open_forward
from engine.models import families
from engine.models.adapter import attach_adapter
from engine.models.recurrent_mixers import mixer_names
from engine.plan.stream_plan import StreamPlan
from engine.steps.sequence_sharding import refuse_recurrent_layers
from engine.streaming.decoder import Decoder
from engine.streaming.step import StepCancelled, StreamedStep
from engine.verify.double_precision import DoublePrecision
from tests.support.side_streams import SCHEDULES, simulated

CPU = torch.device("cpu")
WORDS, LENGTH = 83, 109
SHAPE = {
    "vocab_size": WORDS,
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "intermediate_size": 64,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DELTA = {
    "linear_key_head_dim": 12,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
}
MAMBA = {"mamba_d_head": 12, "mamba_d_state": 8, "mamba_chunk_size": 32, "mamba_n_groups": 2, "mamba_n_heads": 8}
FAMILIES = {
    "qwen3_5_text": DELTA,
    "qwen3_next": {**DELTA, **EXPERTS},
    "qwen3_5_moe_text": {**DELTA, **EXPERTS},
    "olmo_hybrid": {**DELTA, "linear_num_value_heads": 2},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv", "conv"]},
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 96},
    "granitemoehybrid": {
        **MAMBA,
        "layer_types": ["mamba", "attention", "mamba", "mamba"],
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 24,
    },
}
DELTA_RULE = [name for name, shape in FAMILIES.items() if "linear_key_head_dim" in shape]
ONE, SEVERAL = (0,), (0, 1, 5, 6, 33, 64, 65, 90)
"Documents of one token, borders at a tile's start, one and two tokens after it, and in its middle."
BASE = StreamPlan(tile=32, key_block=64, loss_piece=50)
PLANS = {
    "tiles of half a chunk": BASE,
    "no tile ends where a chunk does": StreamPlan(tile=13, key_block=29, loss_piece=5),
    "recomputed": dataclasses.replace(BASE, tile=39, stash=False, checkpoint_every=2),
    "recomputed from every third layer": dataclasses.replace(BASE, checkpoint_every=3),
    "the last tile is one token": dataclasses.replace(BASE, tile=27, hidden_home="disk"),
    "one tile": dataclasses.replace(BASE, tile=128, key_block=128),
    "one tile, two layers kept": dataclasses.replace(BASE, tile=128, key_block=128, keep_layers=2),
    "weights streamed": dataclasses.replace(BASE, weights="streamed"),
}


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    monkeypatch.setattr(families, "FAMILIES", dict(families.FAMILIES))
    for name in FAMILIES:
        families.admit(name, families.Family())


def make_model(family, dtype=torch.float64, seed=0, **changes):
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **{**SHAPE, **FAMILIES[family], **changes})
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    model.config._experts_implementation = "eager"
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.to(dtype).train()  # some parameters are fp32 in any model


def adapted(model, rank=4, **lora):
    model.requires_grad_(False)
    found = attach_adapter(model, from_mapping({"lora": {"rank": rank, **lora}}).lora, seed=1)
    generator = torch.Generator().manual_seed(2)
    for parameter in found.parameters():
        if parameter.requires_grad:
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator, dtype=model.dtype)
    return found.train()


def tokens(seed=5, length=LENGTH):
    return torch.randint(3, WORDS, (length,), generator=torch.Generator().manual_seed(seed))


def token_by_token(query, key, value, g, beta, initial_state=None, output_final_state=False, **_):
    """The gated delta rule by its definition (arXiv 2412.06464, equation 10), in fp64."""
    q, k, v, decay, rate = (x.double() for x in (query, key, value, g, beta))
    repeats = v.shape[2] // q.shape[2]
    q, k = (x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6) for x in (q, k))
    q, k = (x.repeat_interleave(repeats, dim=2) for x in (q, k))
    state = torch.zeros(*v.shape[:1], v.shape[2], k.shape[3], v.shape[3], dtype=torch.float64)
    assert initial_state is None
    outputs = []
    for t in range(q.shape[1]):
        state = state * decay[:, t].exp()[..., None, None]
        seen = torch.einsum("bhkv,bhk->bhv", state, k[:, t])
        state = state + torch.einsum("bhk,bhv->bhkv", k[:, t], rate[:, t, :, None] * (v[:, t] - seen))
        outputs.append(torch.einsum("bhkv,bhk->bhv", state, q[:, t]) * q.shape[3] ** -0.5)
    return torch.stack(outputs, 1).to(query.dtype), state if output_final_state else None


def reference(model, ids, starts, definition=None):
    """Loss sum and gradients of its mean by ordinary backpropagation."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    module = sys.modules[type(base).__module__]
    own = getattr(module, "torch_chunk_gated_delta_rule", None)
    if definition is not None:
        module.torch_chunk_gated_delta_rule = definition
    model.zero_grad()
    total = 0.0
    try:
        for start, stop in pairwise((*starts, len(ids))):
            logits = model(input_ids=ids[None, start:stop], use_cache=False).logits[0]
            if stop - start > 1:
                loss = F.cross_entropy(logits[:-1].double(), ids[start + 1 : stop], reduction="sum")
                (loss / (len(ids) - len(starts))).backward()
                total += float(loss.detach())
    finally:
        if definition is not None:
            module.torch_chunk_gated_delta_rule = own
    return total, taken(model)


@functools.cache
def known_reference(family, starts, definition=None):
    """Those of an untouched model and the usual tokens, which several tests compare with; they change none of them."""
    with DoublePrecision():
        return reference(make_model(family), tokens(), starts, definition)


def taken(model):
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def streamed(model, plan, ids, starts, folder=None):
    with StreamedStep(model, plan, device=CPU, spill_directory=folder) as step:
        outcome = step.run(ids, document_starts=starts)
    return outcome.loss_sum, taken(model)


def same(found, wanted, tolerance):
    assert found[0] == pytest.approx(wanted[0], rel=tolerance)
    assert found[1].keys() == wanted[1].keys()
    whole = torch.stack([gradient.norm() for gradient in wanted[1].values()]).norm()
    for name, want in wanted[1].items():
        assert (found[1][name] - want).norm() <= tolerance * (want.norm() + 1e-4 * whole), name


@pytest.mark.parametrize("starts", [ONE, SEVERAL], ids=["one document", "several"])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
def test_the_gradient_is_that_of_the_rule_token_by_token(plan, starts, tmp_path):
    wanted = known_reference("qwen3_5_text", starts, token_by_token)
    with DoublePrecision():
        same(streamed(make_model("qwen3_5_text"), plan, tokens(), starts, tmp_path), wanted, 1e-9)


@pytest.mark.parametrize("starts", [ONE, SEVERAL], ids=["one document", "several"])
@pytest.mark.parametrize("family", DELTA_RULE)
def test_an_adapter_on_every_linear_layer(family, starts):
    model = adapted(make_model(family))
    with DoublePrecision():
        wanted = reference(model, tokens(), starts, token_by_token)
        assert any(".linear_attn." in name for name in wanted[1])
        same(streamed(model, PLANS["no tile ends where a chunk does"], tokens(), starts), wanted, 1e-6)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "qwen3_5_text"])
def test_every_kind_of_recurrent_layer(family):
    model = make_model(family)
    definition = token_by_token if family in DELTA_RULE else None
    for starts, plan in ((ONE, BASE), (SEVERAL, PLANS["recomputed"])):
        with DoublePrecision():
            wanted = reference(model, tokens(), starts, definition)
            same(streamed(model, plan, tokens(), starts), wanted, 1e-6)


def test_in_fp32_as_it_trains():
    """What transformers computes in fp32 differs by the rounding of fp32: its chunks begin elsewhere."""
    model = make_model("qwen3_5_text", torch.float32)
    wanted = reference(model.double(), tokens(), SEVERAL, token_by_token)
    same(streamed(model.float(), BASE, tokens(), SEVERAL), wanted, 2e-3)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("family", ["qwen3_5_text", "falcon_h1"])
def test_states_that_are_copied_to_the_host_and_back(family, schedule):
    model = make_model(family)
    plan = dataclasses.replace(BASE, tile=19, checkpoint_every=2, kv_home="host")
    wanted = known_reference(family, SEVERAL)
    with DoublePrecision(), simulated(schedule), StreamedStep(model, plan, device=CPU) as step:
        for _ in range(2):
            loss = step.run(tokens(), document_starts=SEVERAL).loss_sum
            same((loss, taken(model)), wanted, 1e-6)


def test_sequences_of_any_length_share_the_buffers_and_gradients_add_up():
    model = make_model("qwen3_5_text")
    lengths = (LENGTH, 40, 7, 97)
    with DoublePrecision():
        wanted = [reference(model, tokens(n, n), (0, n // 3)) for n in lengths]
        with StreamedStep(model, BASE, device=CPU) as step:
            for n in lengths:
                step.run(tokens(n, n), document_starts=(0, n // 3))
            found = taken(model)
            scored = step.evaluate(tokens(), document_starts=SEVERAL).loss_sum
        total = {name: sum(gradients[name] for _, gradients in wanted) for name in found}
        same((1.0, found), (1.0, total), 1e-9)
        assert scored == pytest.approx(reference(model, tokens(), SEVERAL)[0], rel=1e-9)


@pytest.mark.parametrize("name", ["tiles of half a chunk", "recomputed", "weights streamed"])
def test_a_step_that_was_cut_off_goes_on(name):
    plan = PLANS[name]
    with DoublePrecision():
        whole = make_model("qwen3_5_text")
        wanted = streamed(whole, plan, tokens(), SEVERAL)
        for boundaries in range(1, 5):
            model, points, kept = make_model("qwen3_5_text"), [], {}

            def boundary(point, points=points, kept=kept, model=model):
                tiles = [tile.clone() for tile in point.gradient()]
                points.append(dataclasses.replace(point, gradient=lambda: iter(tiles)))
                kept.update({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

            def cancelled(points=points, boundaries=boundaries):
                return len(points) >= boundaries

            with StreamedStep(model, plan, device=CPU) as step, pytest.raises(StepCancelled):
                step.run(tokens(), document_starts=SEVERAL, boundary=boundary, cancelled=cancelled)
            model.zero_grad()
            for name_, parameter in model.named_parameters():
                parameter.grad = kept.get(name_)
            # Without random numbers any tile length may go on.
            other = dataclasses.replace(plan, tile=23)
            with StreamedStep(model, other, device=CPU) as step:
                loss = step.run(tokens(), document_starts=SEVERAL, resumed=points[-1]).loss_sum
            same((loss, taken(model)), wanted, 1e-9)


def test_dropout_in_an_adapter_is_drawn_alike_in_every_pass():
    model = adapted(make_model("qwen3_5_text"), dropout=0.2)
    found = []
    for plan in (BASE, dataclasses.replace(BASE, checkpoint_every=2), dataclasses.replace(BASE, stash=False)):
        torch.manual_seed(7)
        with DoublePrecision():
            found.append(streamed(model, plan, tokens(), SEVERAL))
    same(found[1], found[0], 1e-9)
    same(found[2], found[0], 1e-9)


def test_a_mixer_is_found_by_what_it_is():
    for family in FAMILIES:
        model = make_model(family)
        mixers = mixer_names(model)
        assert mixers
        for name in mixers:
            source = inspect.getsource(type(model.get_submodule(name)).forward)
            assert "update_conv_state" in source
        reads = [
            name for name, part in model.named_modules() if "update_conv_state" in inspect.getsource(type(part).forward)
        ]
        assert sorted(mixers) == sorted(reads)


@pytest.mark.parametrize("family", ["falcon_h1", "qwen3_5_text"])
def test_tiles_of_one_token_are_refused_in_one_line(family):
    """transformers' path for single tokens writes the state in place, and a GPU's kernels for it have no backward."""
    with pytest.raises(ValueError, match="tile 1 with recurrent layers"):
        StreamedStep(make_model(family), StreamPlan(tile=1, key_block=1), device=CPU)


def test_sequence_parallelism_is_refused_by_name():
    with pytest.raises(EliteError, match=r"falcon_h1 is not supported by sequence parallelism .*rank to rank"):
        refuse_recurrent_layers(Decoder(make_model("falcon_h1")))


@pytest.mark.parametrize("family", ["qwen3_5_text", "falcon_h1"])
def test_text_goes_on_from_the_states(family):
    model = make_model(family).eval()
    ids = tokens()
    with torch.no_grad(), DoublePrecision():
        wanted = model(input_ids=ids[None], use_cache=False).logits[0].float()
        one = open_forward(model, LENGTH, tile=16, page=32)
        found = [one.advance(ids[:70])] + [one.advance(ids[at : at + 1]) for at in range(70, 80)]
        assert torch.stack(found).sub(wanted[69:80]).norm() < 1e-6 * wanted[69:80].norm()


def test_a_layer_keeps_its_own_forward_after_a_step():
    model = make_model("qwen3_5_text")
    streamed(model, BASE, tokens(), ONE)
    assert not any("forward" in vars(model.get_submodule(name)) for name in mixer_names(model))
