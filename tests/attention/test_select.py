"""A backend that computes something else is never the fastest."""

from __future__ import annotations

import math

import pytest
import torch

from engine.attention.backend import AttentionBackend
from engine.attention.cpu import CpuFlash
from engine.attention.flash_attn_package import FlashAttnPackage
from engine.attention.select import time_backend

CPU = torch.device("cpu")


class AcrossBorders(CpuFlash):
    """Lets a document see the one before it."""

    def forward_documents(self, q, k, v, *, borders, scale):
        return self.forward(q, k, v, causal=True, scale=scale)


class HalfTheValues(CpuFlash):
    def backward(self, *tensors, causal, scale):
        dq, dk, dv = super().backward(*tensors, causal=causal, scale=scale)
        return dq, dk, dv / 2


class Refuses(CpuFlash):
    def forward(self, q, k, v, *, causal, scale):
        raise RuntimeError("no kernel image is available for execution on the device")


class OfAnotherVersion(CpuFlash):
    def forward(self, q, k, v, *, causal, scale):
        raise TypeError("got an unexpected keyword argument 'softcap'")


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2)])
def test_a_right_backend_is_timed(heads, kv_heads):
    assert 0 < time_backend(CpuFlash(), CPU, torch.float32, heads, kv_heads, 16) < math.inf


@pytest.mark.parametrize("kind", [AcrossBorders, HalfTheValues, Refuses, OfAnotherVersion])
def test_a_wrong_backend_takes_for_ever(kind: type[AttentionBackend]):
    assert time_backend(kind(), CPU, torch.float32, 4, 2, 16) == math.inf


def test_the_package_says_what_it_lacks():
    assert "NVIDIA GPU" in str(FlashAttnPackage().unavailable(CPU, torch.float16, 64))
