"""RMSNorms of families that are not listed as fused: which are served, and by what rule."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine.models.checked_kernel import CheckedKernel
from engine.models.fused import is_rms_norm, serve_norms


class AddsOneRMSNorm(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.eps = 1e-6
        self.weight = nn.Parameter(0.1 * torch.randn(width))

    def forward(self, x):
        wide = x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps) * (1 + self.weight.float())).to(x)


class SometimesScaledRMSNorm(nn.Module):
    """As Gemma 4's: values are normed without weights."""

    def __init__(self, *, scaled):
        super().__init__()
        self.eps = 1e-6
        if scaled:
            self.weight = nn.Parameter(torch.randn(8))

    def forward(self, x):
        y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return y * self.weight if hasattr(self, "weight") else y


class PlainRMSNorm(AddsOneRMSNorm):
    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class GatedRMSNorm(AddsOneRMSNorm):
    def forward(self, x, gate):
        return super().forward(x) * gate


class BiasedRMSNorm(AddsOneRMSNorm):
    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(8))


@pytest.mark.parametrize("kind", [AddsOneRMSNorm, PlainRMSNorm])
def test_a_norm_computes_on_a_cpu_what_it_did(kind, monkeypatch):
    own = vars(kind)["forward"]
    monkeypatch.setattr(kind, "forward", own)  # is there again after the test
    module, x = kind(), torch.randn(3, 8)
    wanted = module(x)
    serve_norms(nn.Sequential(module, kind()))
    served = kind.forward
    assert isinstance(served, CheckedKernel)
    assert torch.equal(module(x), wanted)
    serve_norms(module)
    assert kind.forward is served  # once for all modules of a class


def test_what_weights_are_added_to_is_seen():
    from engine.models.fused import _offset

    assert _offset(AddsOneRMSNorm()) == 1.0
    assert _offset(PlainRMSNorm()) == 0.0


@pytest.mark.parametrize("module", [GatedRMSNorm(), BiasedRMSNorm(), nn.LayerNorm(8), nn.Linear(8, 8)])
def test_other_modules_are_left_alone(module):
    assert not is_rms_norm(module)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_norm_without_weights_computes_its_own(device, monkeypatch):
    monkeypatch.setattr(SometimesScaledRMSNorm, "forward", vars(SometimesScaledRMSNorm)["forward"])
    bare, x = SometimesScaledRMSNorm(scaled=False), torch.randn(3, 8, device=device)
    wanted = bare(x)
    serve_norms(nn.ModuleList([SometimesScaledRMSNorm(scaled=True), bare]))
    assert isinstance(SometimesScaledRMSNorm.forward, CheckedKernel)
    assert torch.equal(bare(x), wanted)
