"""Stand-ins for kernels without numbers: tensors of the shapes and types that the code in torch gives."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from engine.models.layers import decoder_layers
from engine.models.recurrent_mixers import mixer_names
from engine.verify.observed_bytes import observed_bytes
from engine.verify.observed_kernels import kernels_stand_in
from tests.streaming.test_recurrent import FAMILIES, SHAPE

FAMILY = "qwen3_5_text"


def layers_of(family, dtype=torch.bfloat16):
    config = AutoConfig.for_model(family, **{**SHAPE, **FAMILIES[family]})
    with torch.device("meta"):
        return config, decoder_layers(AutoModelForCausalLM.from_config(config, dtype=dtype))


@pytest.mark.parametrize("family", ["qwen3_5_text", "qwen3_next"])
def test_a_stand_in_gives_what_the_code_gives(family):
    _, layers = layers_of(family)
    mixer = layers[0].get_submodule(mixer_names(layers[0])[0])

    def computed():
        x = torch.empty((1, 70, SHAPE["hidden_size"]), dtype=torch.bfloat16, device="meta", requires_grad=True)
        with torch.device("meta"):
            y = mixer(x)
        return y, torch.autograd.grad(y, [x, *mixer.parameters()], torch.empty_like(y), allow_unused=True)

    own, own_gradients = computed()
    forward = type(mixer).forward
    with kernels_stand_in(layers[0]):
        y, gradients = computed()
    assert (y.shape, y.dtype) == (own.shape, own.dtype)
    assert gradients[0].shape == own_gradients[0].shape
    # Weights of norms and of the convolution have no gradient here; those of the products before them do.
    assert sum(gradient is not None for gradient in gradients) >= 4
    assert type(mixer).forward is forward
    assert not any("forward" in vars(part) for part in layers[0].modules())


def test_kernels_hold_less_than_the_code_in_torch():
    config, _ = layers_of(FAMILY)
    _, counted = observed_bytes(config, ["down_proj", "in_proj_qkv", "out_proj"])
    *narrow, wide = counted
    assert [(each.element, each.kernels, each.norms) for each in narrow] == [
        (2, False, False), (2, False, True), (2, True, False), (2, True, True)
    ]  # fmt: skip
    assert (wide.element, wide.kernels, wide.norms) == (4, False, False)
    plain, normed, mixed, served = narrow
    assert served.saved < 0.7 * plain.saved
    assert served.backward < 0.7 * plain.backward
    assert max(normed.saved, mixed.saved) < plain.saved
    assert served.saved < min(normed.saved, mixed.saved)


def test_a_model_without_recurrent_layers_is_counted_with_its_norms_served_and_without():
    config = AutoConfig.for_model("qwen3", **SHAPE)
    _, counted = observed_bytes(config, ["down_proj"])
    assert [(each.element, each.kernels, each.norms) for each in counted] == [
        (2, False, False), (2, False, True), (4, False, False)
    ]  # fmt: skip
    plain, served, _ = counted
    # Of each token, two norms' inputs of hidden_size and those of the heads' norms are saved in 2 bytes, not in 4, and
    # a factor of fp32 for each row; of the code in torch, such a factor as well.
    heads = SHAPE["num_attention_heads"] + SHAPE["num_key_value_heads"]
    normed = 2 * SHAPE["hidden_size"] + heads * AutoConfig.for_model("qwen3", **SHAPE).head_dim
    assert plain.saved - served.saved >= 2 * normed


def test_a_layer_norm_is_served_by_no_kernel():
    _, counted = observed_bytes(AutoConfig.for_model("starcoder2", **SHAPE), ["c_proj"])
    assert [(each.element, each.norms) for each in counted] == [(2, False), (4, False)]


class SometimesScaledRMSNorm(nn.Module):
    """As Gemma 4's: values are normed without weights."""

    def __init__(self, *, scaled):
        super().__init__()
        self.eps = 1e-6
        if scaled:
            self.weight = nn.Parameter(torch.ones(8, device="meta"))

    def forward(self, x):
        y = x.float().square().to(x)
        return y * self.weight if hasattr(self, "weight") else y


def test_a_norm_without_weights_is_counted_by_its_own_code():
    scaled, bare = SometimesScaledRMSNorm(scaled=True), SometimesScaledRMSNorm(scaled=False)
    own = SometimesScaledRMSNorm.forward
    x = torch.empty((4, 8), dtype=torch.bfloat16, device="meta", requires_grad=True)
    with kernels_stand_in(nn.ModuleList([scaled, bare]), mixers=False):
        assert type(scaled(x).grad_fn).__name__ == "_NormBackward"
        assert type(bare(x).grad_fn).__name__ == "ToCopyBackward0"
    assert SometimesScaledRMSNorm.forward is own


CHILD = """
import torch
import triton.language as tl
from liger_kernel.ops import rms_norm

from engine.verify.observed_kernels import _Norm
from tests.plan.live_bytes import LiveBytes


class Number(float):
    def to(self, _):  # which the interpreter does not know of a number
        return self


rms_norm.rsqrt = lambda x: tl.rsqrt(x)  # the interpreter has none of the device's own library


def held(norm, device, offset):
    x = torch.randn((1, 9, 2, 64), dtype=torch.float16, device=device).requires_grad_()
    weight, gradient = torch.ones(64, dtype=torch.float16, device=device), torch.ones_like(x)
    live = LiveBytes(device)
    live.ignore(x, weight, gradient)
    with live:
        y = norm(x, weight, offset)
        saved = live.now
        torch.autograd.backward(y, gradient)
    return saved, live.peak


def kernel(x, weight, offset):
    mode = "gemma" if offset else "llama"
    return rms_norm.LigerRMSNormFunction.apply(x, weight, Number(1e-6), Number(offset), mode, False)


for offset in (0.0, 1.0):
    assert held(kernel, "cpu", offset) == held(lambda x, weight, _: _Norm.apply(x, weight), "meta", offset)
"""


def test_the_norms_stand_in_holds_what_the_kernel_does():
    """liger's function with its kernels interpreted on a CPU, in both roundings."""
    environment = os.environ | {"TRITON_INTERPRET": "1"}  # read when triton is imported
    command = [sys.executable, "-c", CHILD]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]


def test_a_model_of_which_no_layer_attends_has_shapes():
    """Its configuration names heads, which nothing uses."""
    from engine.models.spec import as_spec
    from engine.verify.observed_shape import observed_shape

    config = AutoConfig.for_model(
        "granitemoehybrid", **{**SHAPE, **FAMILIES["granitemoehybrid"], "layer_types": ["mamba"] * 4}
    )
    spec = as_spec(observed_shape(config, adapts_mlp=False), name="", family="granitemoehybrid")
    assert (spec.attending_layers, spec.heads, spec.kv_heads) == (0, 4, 2)
    assert spec.recurrent is not None
    assert spec.recurrent.layers == spec.recurrent.without_attention == 4
