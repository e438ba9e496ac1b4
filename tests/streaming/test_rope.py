"""Every kind of rotary scaling, below, between and above the lengths at which it may change; and far positions."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from engine.errors import EliteError
from engine.models.config_reader import spec_from_config
from engine.models.rope_tables import keep_tables_exact
from engine.plan.request import streaming_refusal
from engine.plan.stream_plan import StreamPlan
from engine.streaming.decoder import Decoder
from engine.streaming.positions import TileArguments
from engine.streaming.step import StreamedStep
from tests.streaming.reference import streamed, worst_error

CPU = torch.device("cpu")
_SHORT, _LONG = [1.0] * 8, [1.0 + 0.5 * i for i in range(8)]


def _rope(kind, **settings):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **settings}}


def _longrope(original, **more):
    return _rope("longrope", factor=4.0, original_max_position_embeddings=original, short_factor=_SHORT,
                 long_factor=_LONG, **more)  # fmt: skip


ORIGINAL = "original_max_position_embeddings"
CASES = {
    "default": ("llama", 64, _rope("default")),
    "partial": ("phi", 64, {"num_key_value_heads": 4, "partial_rotary_factor": 0.5}),
    "linear": ("llama", 64, _rope("linear", factor=4.0)),
    "llama3": ("llama", 128, _rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, **{ORIGINAL: 32})),
    "yarn": ("llama", 128, _rope("yarn", factor=4.0, **{ORIGINAL: 32})),
    "yarn, original above": ("llama", 32, _rope("yarn", factor=4.0, **{ORIGINAL: 64})),
    "proportional": ("llama", 64, _rope("proportional", partial_rotary_factor=0.5)),
    "dynamic": ("llama", 64, _rope("dynamic", factor=4.0)),
    "dynamic, original below": ("llama", 64, _rope("dynamic", factor=4.0, **{ORIGINAL: 32})),
    "dynamic, original above": ("llama", 32, _rope("dynamic", factor=4.0, **{ORIGINAL: 64})),
    "longrope": ("llama", 64, _longrope(32)),
    "longrope, original above": ("llama", 32, _longrope(64)),
    "longrope, only trained length": ("llama", 64, _longrope(64)),
    "phi3's longrope": ("phi3", 64, {ORIGINAL: 32, **_longrope(32)}),
    "phi3's longrope, the model's own key counts": ("phi3", 64, {ORIGINAL: 32, **_longrope(64)}),
    "gemma3, full attention dynamic": (
        "gemma3_text",
        64,
        {
            "head_dim": 16,
            "sliding_window": 20,
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        },
    ),
}


def _model(family, trained, changes):
    settings = {
        "vocab_size": 97,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 96,
        "max_position_embeddings": trained,
        "initializer_range": 0.15,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **copy.deepcopy(changes),
    }
    config = AutoConfig.for_model(family, **settings)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float64, attn_implementation="eager").train()


def _tables(model, positions):
    """What transformers computes, by a module that has seen nothing before."""
    rotary = type(model.model.rotary_emb)(model.config)
    x = torch.zeros((1, len(positions), 4), dtype=torch.float64)
    kinds = getattr(model.config, "layer_types", None)
    each = [(kind,) for kind in sorted(set(kinds))] if model.config.model_type == "gemma3_text" else [()]
    return torch.stack([torch.stack(rotary(x, positions[None], *kind)) for kind in each])


@pytest.mark.parametrize("context", [31, 32, 33, 50, 64, 65, 100])
@pytest.mark.parametrize(("family", "trained", "changes"), CASES.values(), ids=CASES)
def test_the_streamed_gradient_is_right_or_refused_where_tables_depend_on_the_length(family, trained, changes, context):
    model = _model(family, trained, changes)
    everywhere = torch.arange(context)
    fixed = torch.equal(_tables(model, everywhere)[..., :7, :], _tables(model, everywhere[:7]))
    spec = spec_from_config(model.config.to_dict(), name="tiny")
    assert (streaming_refusal(spec, context) is None) == fixed, "the plan says what the step does"
    ids = torch.randint(3, 97, (context,), generator=torch.Generator().manual_seed(1))
    plan = StreamPlan(tile=9, key_block=16, loss_piece=7)
    reference = copy.deepcopy(model)
    if not fixed:
        with StreamedStep(model, plan, device=CPU) as step, pytest.raises(EliteError, match="change with the length"):
            streamed(step, ids)
        return
    logits = reference(input_ids=ids[None], use_cache=False).logits[0, :-1]
    loss = functional.cross_entropy(logits, ids[1:], reduction="sum")
    (loss / (context - 1)).backward()
    with StreamedStep(model, plan, device=CPU) as step:
        found, gradients = streamed(step, ids)
    assert found == pytest.approx(float(loss), rel=1e-6)
    expected = {name: parameter.grad for name, parameter in reference.named_parameters()}
    error, name = worst_error(gradients, expected)
    assert error < 5e-6, name


# --- far positions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [1 << 20, 4 << 20])
def test_far_positions_are_transformers_own_to_the_last_bit_and_as_good_as_fp32_is(end):
    """A tile of a long sequence against one call over these positions, and against angles in fp64."""
    model = _model("llama", 8 << 20, _rope("default")).float()
    tile = 512
    arguments = TileArguments(Decoder(model), end, (0,), tile, CPU).of(end // tile - 1, torch.zeros(1, tile, 64))
    cos, sin = arguments[0]["position_embeddings"]
    positions = torch.arange(end - tile, end)
    rotary = type(model.model.rotary_emb)(model.config)
    plain_cos, plain_sin = rotary(torch.zeros(1, tile, 64), positions[None])
    assert torch.equal(cos, plain_cos)
    assert torch.equal(sin, plain_sin)
    check_against_fp64(cos[0], sin[0], positions, head_dim=16)


def check_against_fp64(cos, sin, positions, head_dim, theta=10000.0):
    """No further from the exact tables than fp32's rounding of the frequency and of the angle puts them."""
    frequencies = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angles = positions.cpu().double()[:, None] * frequencies
    stored = 1.0 / (theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim))
    rounded = positions.cpu().double()[:, None] * stored.double()
    half = head_dim // 2
    # The frequency as it is stored: what is left is one rounding of the angle, 2^-24 of it, and the table's own.
    allowed = rounded * 2.0**-24 + 2e-6
    for table, exact in ((cos, torch.cos), (sin, torch.sin)):
        assert ((table[:, :half].cpu().double() - exact(rounded)).abs() <= allowed).all()
        assert torch.equal(table[:, :half], table[:, half:])
        # Against exact frequencies: theirs are off by a few units in the last place, the same for every position.
        assert ((table[:, :half].cpu().double() - exact(angles)).abs() <= angles * 2.0**-21 + 2e-6).all()


def test_tables_are_computed_outside_reduced_precision(monkeypatch):
    """A rotary module as transformers 5.17 has it: its product sees what matrix products may do."""
    model = _model("llama", 512, _rope("default")).float()
    seen = []
    rotary = model.model.rotary_emb
    plain = rotary.forward

    def product(x, position_ids):
        seen.append((torch.get_float32_matmul_precision(), torch.is_autocast_enabled(x.device.type)))
        return plain(x, position_ids)

    rotary.forward = product
    keep_tables_exact(model)
    keep_tables_exact(model)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(input_ids=torch.arange(9)[None], use_cache=False)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == [("highest", False)]
