"""Experts in the streamed step: frozen, adapted and in 4 bits, against transformers' own loop and PEFT's wrapper."""

from __future__ import annotations

import copy

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from peft import LoraConfig, PeftModel, get_peft_model
from support.families import save_family
from transformers import AutoConfig, AutoModelForCausalLM

from engine.config import LoraSection
from engine.errors import EliteError
from engine.models import families
from engine.models.adapter import attach_adapter
from engine.models.catalogue import find_model
from engine.models.expert_stacks import experts_modules, quantised_stack, stacks_of
from engine.models.experts import quantise_experts, use_frozen_experts
from engine.models.layers import decoder_layers
from engine.models.loading import load_model
from engine.models.placement import choose_placement
from engine.plan.stream_plan import StreamPlan
from engine.streaming.step import StreamedStep
from engine.verify.double_precision import DoublePrecision
from tests.streaming.models import _COMMON, tiny_model
from tests.streaming.reference import streamed, whole_sequence, worst_error
from tests.support.side_streams import simulated

CPU = torch.device("cpu")
TOKENS = torch.randint(0, 97, (75,), generator=torch.Generator().manual_seed(3))
PLAN = StreamPlan(tile=16, key_block=32, loss_piece=20)

EXPERTS = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 32}
SHAPES = {
    "gpt_oss": {"num_local_experts": 5, "num_experts_per_tok": 2, "head_dim": 16},
    "laguna": {**EXPERTS, "head_dim": 16, "shared_expert_intermediate_size": 40, "sliding_window": 20},
    "mellum": {**EXPERTS, "head_dim": 16, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "mixtral": {"num_local_experts": 5, "num_experts_per_tok": 2},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 40},
    "qwen3_5_moe_text": {
        **EXPERTS,
        "shared_expert_intermediate_size": 40,
        "head_dim": 16,
        "num_hidden_layers": 4,
        "linear_key_head_dim": 12,
        "linear_value_head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    },
    "qwen3_moe": {**EXPERTS, "head_dim": 16},
}


def model(family, dtype=torch.float64, **changes):
    """A tiny frozen model whose reference computes experts one after the other."""
    config = AutoConfig.for_model(family, **{**_COMMON, **SHAPES[family], **changes})
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager")
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.data = parameter.data.to(dtype)
            if parameter.ndim < 3:  # norms of one and biases of zero hide errors
                parameter.add_(0.1 * torch.randn_like(parameter))
    made.config._experts_implementation = "eager"
    return made.requires_grad_(requires_grad=False).train()


@pytest.fixture
def admitted(monkeypatch):
    """Admits families that no list has, as their proofs do."""

    def admit(family):
        if family not in families.FAMILIES:
            monkeypatch.setitem(families.FAMILIES, family, families.Family(shape={"adapts_mlp": False}))

    return admit


def plain_adapter(base, *, seed=7):
    """PEFT's own, on attention and on every expert; what it computes is what the streamed step must."""
    stacks = [f"experts.{name}" for name in ("gate_up_proj", "down_proj")]
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "o_proj"], target_parameters=stacks)
    adapted = get_peft_model(base, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return adapted.train()


TOLERANCE = 3e-6
"""In fp64, but for what transformers rounds to fp32 itself, such as routers' scores."""


@pytest.mark.parametrize("family", SHAPES)
def test_one_module_of_experts_with_and_without_adapters(family):
    """Against transformers' loop over experts with PEFT's merged matrices: output and every gradient."""
    base = model(family)
    [(path, _)] = [(name, m) for name, m in base.named_modules() if stacks_of(m)][-1:]
    x = torch.randn(29, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    count, k = base.get_submodule(path).num_experts, base.config.num_experts_per_tok
    scores = torch.rand(29, count - 1, generator=torch.Generator().manual_seed(6))
    chosen = scores.topk(k).indices  # none takes the last expert
    weights = torch.rand(29, k, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    for adapted in (base, plain_adapter(copy.deepcopy(base))):
        name = path if adapted is base else f"base_model.model.{path}"
        module = adapted.get_submodule(name)
        found = []
        for _ in range(2):
            adapted.zero_grad()
            given = [x.clone().requires_grad_(), weights.clone().requires_grad_()]
            y = module(given[0], chosen, given[1])
            y.backward(torch.cos(torch.arange(y.numel(), dtype=y.dtype)).view_as(y))
            trained = [p.grad.clone() for p in module.parameters() if p.requires_grad]
            found.append([y.detach(), *(each.grad for each in given), *trained])
            use_frozen_experts(module)
        assert len(found[0]) == (3 if adapted is base else 7)
        for one, other in zip(*found, strict=True):
            assert torch.allclose(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("family", list(SHAPES))
def test_adapted_experts_have_the_gradient_of_the_whole_sequence(family, admitted):
    admitted(family)
    adapted = plain_adapter(model(family))
    with DoublePrecision():
        expected_loss, expected = whole_sequence(adapted, TOKENS)
    sparse = sum(bool(list(experts_modules(layer))) for layer in decoder_layers(adapted.get_base_model()))
    assert sum("experts.lora" in name or "base_layer.lora" in name for name in expected) == 2 * 2 * sparse
    with DoublePrecision(), StreamedStep(adapted, PLAN, device=CPU) as step:
        loss, gradients = streamed(step, TOKENS)
    assert loss == pytest.approx(expected_loss, rel=1e-9)
    assert worst_error(gradients, expected)[0] < 1e-9
    with DoublePrecision():
        assert whole_sequence(adapted, TOKENS)[0] == expected_loss  # PEFT's forward is back


@pytest.mark.parametrize("options", [{}, {"tile": 75, "key_block": 75}, {"checkpoint_every": 2, "stash": False}])
def test_layouts(options):
    adapted = plain_adapter(model("qwen3_moe"))
    expected_loss, expected = whole_sequence(adapted, TOKENS)
    for weights in ("resident", "streamed"):
        plan = StreamPlan(**{"tile": 16, "key_block": 32, "loss_piece": 20, "weights": weights, **options})
        with simulated("by chance"), StreamedStep(adapted, plan, device=CPU) as step:
            for _ in range(2):
                loss, gradients = streamed(step, TOKENS)
                assert loss == pytest.approx(expected_loss, rel=TOLERANCE)
                assert worst_error(gradients, expected)[0] < TOLERANCE


def test_kept_graphs_of_one_tile():
    adapted = plain_adapter(model("qwen3_moe"))
    _, expected = whole_sequence(adapted, TOKENS)
    with StreamedStep(adapted, StreamPlan(tile=80, key_block=80, keep_layers=2), device=CPU) as step:
        _, gradients = streamed(step, TOKENS)
    assert worst_error(gradients, expected)[0] < TOLERANCE


# --- 4 bits ---------------------------------------------------------------------------------------------------


def test_a_stack_is_quantised_as_one_tensor():
    stack = torch.randn(6, 24, 64)
    codes, state = quantize_4bit(stack, blocksize=64, quant_type="nf4", compress_statistics=True)
    found = quantised_stack(iter(stack), (6, 24, 64), torch.float32)
    assert torch.equal(found.data, codes)
    assert torch.equal(found.quant_state.absmax, state.absmax)
    assert torch.equal(dequantize_4bit(found.data, found.quant_state), dequantize_4bit(codes, state))


def unpacked(stack):
    """The matrices of a packed stack, by the definition: a code's value times its block's scale."""
    state = stack.quant_state
    high, low = stack.data.flatten() >> 4, stack.data.flatten() & 15
    values = state.code[torch.stack([high, low], 1).flatten().long()]
    of_scales = state.state2
    scales = of_scales.code[state.absmax.long()].view(-1)
    scales = scales * of_scales.absmax.repeat_interleave(of_scales.blocksize)[: len(scales)] + state.offset
    return (values.view(-1, state.blocksize) * scales.unsqueeze(1)).view(state.shape).to(state.dtype)


def four_bit(family):
    """A model with experts in 4 bits, and the same numbers in a plain one."""
    packed = model(family, dtype=torch.float32)
    plain = copy.deepcopy(packed)
    for one, other in zip(decoder_layers(packed), decoder_layers(plain), strict=True):
        quantise_experts(one, CPU)
        for (ours, _), (theirs, _) in zip(experts_modules(one), experts_modules(other), strict=True):
            for name, stack in stacks_of(ours).items():
                getattr(theirs, name).data = unpacked(stack)
    return packed, plain


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_loading_in_4_bits_packs_the_experts(family, tmp_path):
    """Stored expert by expert; each stack is packed as it is read, with bitsandbytes' own codes."""
    spec = find_model(str(save_family(tmp_path / "model", family)))
    packed, plain = (load_model(spec, choose_placement("cpu", precision)) for precision in ("nf4", "fp32"))
    count = 0
    for one, other in zip(decoder_layers(packed), decoder_layers(plain), strict=True):
        for found, stack in zip(stacks(one), stacks(other), strict=True):
            codes, _ = quantize_4bit(stack.data, blocksize=64, quant_type="nf4", compress_statistics=True)
            assert torch.equal(found.data, codes)
            assert (unpacked(found) - stack).norm() < 0.12 * stack.norm()  # NF4 of normal numbers: 0.09
            count += 1
    assert count
    assert packed(input_ids=TOKENS[None], use_cache=False).logits.isfinite().all()


LORA = {"rank": 6, "targets": ["all-linear", "experts"]}


def attached(base, seed=4):
    adapted = attach_adapter(base, LoraSection(**LORA), seed=seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.05 * torch.sin(torch.arange(parameter.numel())).view_as(parameter))
    return adapted.train()


@pytest.mark.parametrize("weights", ["nf4", "nf4-streamed"])
def test_experts_in_4_bits(weights):
    packed, plain = (attached(each) for each in four_bit("qwen3_moe"))
    expected_loss, expected = whole_sequence(plain, TOKENS)
    assert whole_sequence(packed, TOKENS)[0] == pytest.approx(expected_loss, rel=1e-5)  # and not tile by tile
    plan = StreamPlan(tile=16, key_block=32, loss_piece=20, weights=weights)
    with simulated("by chance"), StreamedStep(packed, plan, device=CPU) as step:
        for _ in range(2):
            loss, gradients = streamed(step, TOKENS)
            assert loss == pytest.approx(expected_loss, rel=1e-5)
            assert worst_error(gradients, expected)[0] < 1e-4


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_few_rows_dequantise_the_experts_that_they_chose(family):
    """As a generated token does; the numbers are those of all experts at once."""
    for made in (lambda each: each, attached):
        packed, plain = (made(each).eval() for each in four_bit(family))
        with torch.no_grad():
            for length in (1, 2, 40):
                found, wanted = (
                    each(input_ids=TOKENS[None, :length], use_cache=False).logits for each in (packed, plain)
                )
                assert torch.allclose(found, wanted, atol=1e-5)


def test_packed_experts_are_copied_and_nothing_of_them_is_left_behind():
    """The device's buffers hold two layers in 4 bits; host memory of an entered layer is overwritten."""
    packed, _ = four_bit("qwen3_moe")
    expected = [stack.data.clone() for layer in decoder_layers(packed) for stack in stacks(layer)]
    largest = max(sum(p.nbytes for p in layer.parameters()) for layer in decoder_layers(packed))
    with simulated("by chance"), StreamedStep(packed, StreamPlan(tile=16, weights="nf4-streamed"), device=CPU) as step:
        assert step.streamed.weights.device_bytes < 2 * 1.3 * largest
        for number, layer in enumerate(decoder_layers(packed)):
            step.streamed.enter(number)
            home = step.streamed.weights._packed._home.buffers[number]
            kept = home.clone()
            home.fill_(0xFF)
            for at, stack in enumerate(stacks(layer)):
                assert torch.equal(stack.data, expected[2 * number + at])
            home.copy_(kept)
    after = [stack.data for layer in decoder_layers(packed) for stack in stacks(layer)]
    assert all(torch.equal(one, other) for one, other in zip(after, expected, strict=True))


def stacks(layer):
    return [stack for module, _ in experts_modules(layer) for stack in stacks_of(module).values()]


# --- adapters in PEFT's format --------------------------------------------------------------------------------


@pytest.mark.parametrize("in_4_bits", [False, True])
def test_plain_peft_loads_the_adapter(in_4_bits, tmp_path):
    packed, plain = four_bit("qwen3_moe")
    fresh = copy.deepcopy(plain)
    adapted = attached(packed if in_4_bits else plain).eval()
    wanted = adapted(input_ids=TOKENS[None], use_cache=False).logits
    unadapted = fresh(input_ids=TOKENS[None], use_cache=False).logits
    assert not torch.allclose(wanted, unadapted, atol=1e-3)
    adapted.save_pretrained(tmp_path, save_embedding_layers=False)
    read = PeftModel.from_pretrained(fresh, str(tmp_path)).eval()
    found = read(input_ids=TOKENS[None], use_cache=False).logits
    assert torch.allclose(found, wanted, atol=1e-5)
    with adapted.disable_adapter():
        assert torch.allclose(adapted(input_ids=TOKENS[None], use_cache=False).logits, unadapted, atol=1e-5)


def test_ranks_and_targets():
    """A token meets as much of the adapter in its experts as in an MLP, unless a rank is asked for."""
    ranks = {}
    for asked in (None, 5):
        lora = LoraSection(rank=6, targets=["experts"], expert_rank=asked)
        adapted = attach_adapter(model("qwen3_moe"), lora, seed=0)
        shapes = {name: p.shape[0] for name, p in adapted.named_parameters() if "lora_A" in name}
        assert all("experts" in name for name in shapes)
        [ranks[asked]] = {rows // 6 for rows in shapes.values()}
    assert ranks == {None: 2, 5: 5}
    both = attach_adapter(model("qwen3_moe"), LoraSection(rank=6, targets=["q_proj", "experts"]), seed=0)
    names = [name for name, p in both.named_parameters() if p.requires_grad]
    assert any("q_proj" in name for name in names)
    assert not any("k_proj" in name for name in names)


@pytest.mark.parametrize(
    ("family", "settings", "says"),
    [
        ("qwen3_moe", {"dropout": 0.1}, "lora.dropout"),
        ("qwen3_moe", {"dora": True}, "lora.dora"),
        ("llama", {}, "no experts"),
    ],
)
def test_what_experts_cannot_have_is_refused(family, settings, says):
    base = tiny_model("llama") if family == "llama" else model(family)
    with pytest.raises(EliteError, match=says):
        attach_adapter(base, LoraSection(targets=["all-linear", "experts"], **settings), seed=0)
