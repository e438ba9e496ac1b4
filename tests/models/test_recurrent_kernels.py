"""Where flash-linear-attention is installed, tensors that are on no GPU are kept from its kernels."""

from __future__ import annotations

import functools
import sys
import types

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from engine.models import recurrent_kernels
from engine.models.layers import decoder_layers
from engine.models.recurrent_kernels import example_of_chunks, kernel_report, serve
from engine.models.recurrent_mixers import recurrent_mixers
from tests.streaming.test_recurrent import FAMILIES, SHAPE


@pytest.fixture
def mixers():
    config = AutoConfig.for_model("qwen3_5_text", **{**SHAPE, **FAMILIES["qwen3_5_text"]})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return [mixer for of_layer in recurrent_mixers(decoder_layers(model)) for mixer in of_layer]


@pytest.fixture
def with_package(mixers, monkeypatch):
    """transformers' function calls the package, which knows GPUs alone."""
    module = sys.modules[type(mixers[0].module).__module__]
    plain = getattr(module.torch_chunk_gated_delta_rule, "__wrapped__", module.torch_chunk_gated_delta_rule)

    @functools.wraps(plain)
    def of_package(q, *_, **__):
        raise ValueError("Pointer argument cannot be accessed from Triton (cpu tensor?)")

    monkeypatch.setattr(module, "torch_chunk_gated_delta_rule", of_package)
    spec = types.SimpleNamespace()
    monkeypatch.setattr(recurrent_kernels.importlib.util, "find_spec", lambda name: spec if name == "fla" else None)
    return module


def test_tensors_on_a_cpu_are_computed_in_torch(mixers, with_package):
    x = torch.randn(1, 70, SHAPE["hidden_size"], generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="cpu tensor"):
        mixers[0].module(x)
    serve(mixers)
    found = mixers[0].module(x)
    assert found.shape == x.shape
    assert torch.isfinite(found).all()
    with torch.device("meta"):
        assert mixers[0].module.to("meta")(x.to("meta")).shape == x.shape
    assert kernel_report() == {}


def test_packed_documents_are_left_to_what_transformers_calls(mixers, with_package):
    """Its code in torch would let the state cross their borders."""
    serve(mixers)
    q, v, g = torch.ones(1, 4, 2, 8), torch.ones(1, 4, 2, 8), torch.zeros(1, 4, 2)
    with pytest.raises(ValueError, match="cpu tensor"):
        with_package.torch_chunk_gated_delta_rule(q, q, v, g=g, beta=g, cu_seqlens=torch.tensor([0, 2, 4]))


def test_nothing_is_replaced_without_the_package(mixers):
    module = sys.modules[type(mixers[0].module).__module__]
    before = module.torch_chunk_gated_delta_rule, module.causal_conv1d_fn
    serve(mixers)
    assert (module.torch_chunk_gated_delta_rule, module.causal_conv1d_fn) == before


@pytest.mark.parametrize("first", [False, True])
def test_the_example_that_the_kernel_is_compared_on_suits_the_code_in_torch(first):
    example, scale = example_of_chunks(torch.device("cpu"), torch.float32, (2, 8), (4, 16), first=first)
    found = recurrent_kernels.chunk_gradients_of(**example, scale=scale, state_v_first=first)
    assert [x.shape for x in found] == [(1, 130, 2, 8), (1, 130, 2, 8), (1, 130, 4, 8), (1, 130, 4)]
    assert all(torch.isfinite(x).all() and x.norm() > 0 for x in found)
