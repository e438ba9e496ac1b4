"""LoRA, QLoRA and 16-bit training through the streamed step."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from engine.plan.stream_plan import StreamPlan
from engine.streaming.step import StreamedStep
from tests.streaming.models import FAMILIES, tiny_model
from tests.streaming.reference import streamed, whole_sequence, worst_error

CPU = torch.device("cpu")


def _tokens(n, seed=1):
    return torch.randint(0, 97, (n,), generator=torch.Generator().manual_seed(seed))


def _adapt(model, **settings):
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", **settings))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:  # zero at first: gradients of A would vanish
                parameter.normal_(std=0.05)
    return adapted.train()


def _quantise(model):
    """NF4 with double quantisation, in place, as `from_pretrained` would."""
    import bitsandbytes as bnb

    for layer in model.model.layers:
        for parent in list(layer.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is torch.nn.Linear:
                    quantised = bnb.nn.Linear4bit(
                        child.in_features,
                        child.out_features,
                        bias=child.bias is not None,
                        compute_dtype=child.weight.dtype,
                        compress_statistics=True,
                        quant_type="nf4",
                    )
                    quantised.weight = bnb.nn.Params4bit(
                        child.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True
                    )
                    quantised.bias = child.bias
                    setattr(parent, name, quantised.to("cpu"))
    return model


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in ("mixtral", "qwen3_moe")])
def test_lora_gradient_of_every_family(family):
    model = _adapt(tiny_model(family))
    expected_loss, expected = whole_sequence(model, _tokens(77))
    with StreamedStep(model, StreamPlan(tile=16, key_block=32), device=CPU) as step:
        loss, gradients = streamed(step, _tokens(77))
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    error, name = worst_error(gradients, expected)
    assert error < 1e-5, name


@pytest.mark.parametrize("settings", [{"use_rslora": True}, {"use_dora": True}, {"bias": "lora_only"}])
def test_lora_variants(settings):
    model = _adapt(tiny_model("qwen2"), **settings)
    _, expected = whole_sequence(model, _tokens(50))
    with StreamedStep(model, StreamPlan(tile=16, key_block=32), device=CPU) as step:
        _, gradients = streamed(step, _tokens(50))
    error, name = worst_error(gradients, expected)
    assert error < 1e-5, name


@pytest.mark.parametrize("family", ["qwen2", "gemma2", "llama"])  # tied, tied and capped, untied
def test_trained_rows_of_the_embedding(family):
    """PEFT wraps a head that is tied to the embedding, whose rows it shares."""
    model = _adapt(tiny_model(family), trainable_token_indices=[5, 6, 7])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "trainable_tokens_delta" in name:
                parameter.add_(0.1)
    expected_loss, expected = whole_sequence(model, _tokens(77))
    assert any("trainable_tokens_delta" in name for name in expected)
    with StreamedStep(model, StreamPlan(tile=16, key_block=32), device=CPU) as step:
        loss, gradients = streamed(step, _tokens(77))
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    error, name = worst_error(gradients, expected)
    assert error < 1e-5, name


@pytest.mark.parametrize("family", ["qwen2", "gemma3_text"])  # an odd and an even number of layers
@pytest.mark.parametrize("options", [{}, {"stash": False}, {"checkpoint_every": 2, "stash": False}])
def test_streamed_weights_under_an_adapter(family, options):
    model = _adapt(tiny_model(family))
    expected_loss, expected = whole_sequence(model, _tokens(77))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    plan = StreamPlan(tile=16, key_block=32, weights="streamed", **options)
    with StreamedStep(model, plan, device=CPU) as step:
        for _ in range(2):
            loss, gradients = streamed(step, _tokens(77))
            assert loss == pytest.approx(expected_loss, rel=1e-5)
            error, name = worst_error(gradients, expected)
            assert error < 1e-5, name
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters()), "weights were overwritten"


def test_qlora_gradient():
    model = _adapt(_quantise(tiny_model("qwen2")))
    expected_loss, expected = whole_sequence(model, _tokens(77))
    with StreamedStep(model, StreamPlan(tile=16, key_block=32, weights="nf4"), device=CPU) as step:
        loss, gradients = streamed(step, _tokens(77))
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    error, name = worst_error(gradients, expected)
    assert error < 1e-5, name


@pytest.mark.parametrize(
    ("quantised", "weights"),
    [(True, "resident"), (True, "streamed"), (False, "nf4"), (False, "nf4-streamed")],
)
def test_weights_stored_otherwise_than_planned_are_refused(quantised, weights):
    model = _quantise(tiny_model("qwen2")) if quantised else tiny_model("qwen2")
    with pytest.raises(ValueError, match="stored"):
        StreamedStep(model, StreamPlan(tile=16, key_block=32, weights=weights), device=CPU)


@pytest.mark.parametrize("train", ["lora", "full"])
def test_bf16_is_no_further_from_fp32_than_whole_sequence_bf16(train):
    """Over several seeds: which way a single model's rounding falls is chance."""
    error = {"streamed": 0.0, "whole": 0.0}
    for seed in range(8):

        def build(dtype, seed=seed):
            model = tiny_model("qwen2", seed=seed, hidden_size=128, intermediate_size=256)
            for parameter in model.parameters():  # the same values in both precisions
                parameter.data = parameter.data.bfloat16().to(dtype)
            torch.manual_seed(seed)
            return _adapt(model) if train == "lora" else model

        tokens = _tokens(256, seed)
        _, exact = whole_sequence(build(torch.float32), tokens)
        _, whole = whole_sequence(build(torch.bfloat16), tokens)
        with StreamedStep(build(torch.bfloat16), StreamPlan(tile=64, key_block=64), device=CPU) as step:
            _, tiled = streamed(step, tokens)
        size = sum(g.double().square().sum() for g in exact.values())
        for name, found in (("streamed", tiled), ("whole", whole)):
            assert found.keys() == exact.keys()
            error[name] += float(sum((found[n].double() - exact[n].double()).square().sum() for n in exact) / size)
    assert error["streamed"] ** 0.5 <= 1.05 * error["whole"] ** 0.5


def test_adapter_dropout_draws_the_same_numbers_in_both_passes():
    model = _adapt(tiny_model("qwen2"), lora_dropout=0.3)
    parameter = next(p for n, p in model.named_parameters() if "layers.1.mlp.down_proj.lora_A" in n)
    with StreamedStep(model, StreamPlan(tile=16, key_block=32), device=CPU) as step:

        def loss_and_gradients():
            torch.manual_seed(3)
            return streamed(step, _tokens(40))

        _, gradients = loss_and_gradients()
        name = next(n for n in gradients if "layers.1.mlp.down_proj.lora_A" in n)
        direction = torch.randn_like(parameter)
        direction /= direction.norm()
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * 1e-2 * direction)
            losses.append(loss_and_gradients()[0])
            with torch.no_grad():
                parameter.sub_(sign * 1e-2 * direction)
    slope = (losses[0] - losses[1]) / 2e-2 / 39
    assert slope == pytest.approx((gradients[name] * direction).sum().item(), rel=2e-2)


def test_only_some_layers_trained():
    model = tiny_model("llama")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.1" in name)
    _, expected = whole_sequence(model, _tokens(50))
    with StreamedStep(model, StreamPlan(tile=16, key_block=32), device=CPU) as step:
        _, gradients = streamed(step, _tokens(50))
    assert worst_error(gradients, expected)[0] < 1e-5
