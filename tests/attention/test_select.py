"""A backend that computes something else is never the fastest."""

from __future__ import annotations

import math

import pytest
import torch

from engine.attention import select
from engine.attention.backend import AttentionBackend
from engine.attention.cpu import CpuFlash
from engine.attention.flash_attn_package import FlashAttnPackage
from engine.attention.select import time_backend
from engine.errors.planning import StreamPlanError

CPU = torch.device("cpu")


class AcrossBorders(CpuFlash):
    """Lets a document see the one before it."""

    def forward_documents(self, q, k, v, *, borders, scale):
        return self.forward(q, k, v, causal=True, scale=scale)


class AcrossEvenBorders(CpuFlash):
    """Has a way of its own for documents of one length, which is wrong."""

    borders_to_check = (*CpuFlash.borders_to_check, (0, 64, 128))

    def forward_documents(self, q, k, v, *, borders, scale):
        if borders == (0, 64, 128):
            return self.forward(q, k, v, causal=True, scale=scale)
        return super().forward_documents(q, k, v, borders=borders, scale=scale)


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


class Asserts(CpuFlash):
    def forward(self, q, k, v, *, causal, scale):
        raise AssertionError("(head_dim, head_dim_v)=(16, 16) is not supported on SM100")


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2)])
def test_a_right_backend_is_timed(heads, kv_heads):
    assert 0 < time_backend(CpuFlash(), CPU, torch.float32, heads, kv_heads, 16) < math.inf


@pytest.mark.parametrize("kind", [AcrossBorders, AcrossEvenBorders, HalfTheValues, Refuses, OfAnotherVersion, Asserts])
def test_a_wrong_backend_takes_for_ever(kind: type[AttentionBackend]):
    assert time_backend(kind(), CPU, torch.float32, 4, 2, 16) == math.inf


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_backend_is_checked_where_nothing_is_trained(mode):
    with mode():
        assert time_backend(CpuFlash(), CPU, torch.float32, 4, 2, 16) < math.inf
        assert time_backend(HalfTheValues(), CPU, torch.float32, 4, 2, 16) == math.inf


@pytest.mark.parametrize("kind", [AcrossBorders, AcrossEvenBorders, HalfTheValues, Refuses, OfAnotherVersion, Asserts])
def test_the_only_backend_and_one_that_was_asked_for_are_checked_too(kind, monkeypatch):
    monkeypatch.setattr(select, "BACKENDS", (kind,))
    select.select_backend.cache_clear()
    select.backend_by_name.cache_clear()
    try:
        with pytest.raises(StreamPlanError, match="attention backend cpu"):
            select.select_backend(CPU, torch.float32, 4, 2, 16)
        with pytest.raises(StreamPlanError, match="attention backend cpu"):
            select.backend_by_name("cpu", CPU, torch.float32, 4, 2, 16)
    finally:
        select.select_backend.cache_clear()
        select.backend_by_name.cache_clear()


def test_the_package_says_what_it_lacks():
    assert "NVIDIA GPU" in str(FlashAttnPackage().unavailable(CPU, torch.float16, 64))
