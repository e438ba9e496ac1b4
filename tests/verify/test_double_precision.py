"""In fp64 a model computes what its own code does with fp64 written in place of fp32."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from engine.verify.double_precision import DoublePrecision
from engine.verify.family_proof import prove_family


def angles(self, x, position_ids):
    """Rotary angles as transformers 5.17 computes them: a product of two matrices in fp32."""
    frequencies = self.inv_freq[None, :, None].float().expand(position_ids.shape[0], -1, 1)
    turned = (frequencies @ position_ids[:, None, :].float()).transpose(1, 2)
    both = torch.cat((turned, turned), dim=-1)
    return (both.cos() * self.attention_scaling).to(x.dtype), (both.sin() * self.attention_scaling).to(x.dtype)


@pytest.mark.parametrize("product", [torch.matmul, torch.Tensor.__rmatmul__, torch.mm])
def test_products_with_fp32_are_in_fp64(product):
    torch.manual_seed(1)
    wide, narrow = torch.randn(5, 4, dtype=torch.float64, requires_grad=True), torch.randn(4, 5)
    wanted = product(wide, narrow.double())
    with DoublePrecision():
        found = product(wide.float(), narrow)
        found.sum().backward()
    assert found.dtype == torch.float64
    assert torch.equal(found, wanted)
    gradient, wide.grad = wide.grad, None
    wanted.sum().backward()
    assert torch.equal(gradient, wide.grad)


def test_products_of_fp32_stay_fp32():
    one, other = torch.randn(3, 4), torch.randn(4, 2)
    with DoublePrecision():
        assert torch.equal(one @ other, torch.mm(one, other))


def test_a_family_is_proven_with_rotary_angles_of_an_older_transformers(monkeypatch):
    config = AutoConfig.for_model("gemma2", num_hidden_layers=2)
    with torch.device("meta"):
        rotary = type(AutoModelForCausalLM.from_config(config).model.rotary_emb)
    monkeypatch.setattr(rotary, "forward", angles)
    proof = prove_family(config)
    assert proof.admitted >= {"streamed", "whole", "generated", "exported"}, proof.refused
