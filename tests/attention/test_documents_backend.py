"""The kernel of packed documents is the fastest that keeps them apart, and stands in for cuDNN's and the graphs'."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
import torch
from torch.nn import functional

from engine.attention import select
from engine.attention.cudnn import CudnnFlash
from engine.attention.flash_attention_4 import FlashAttention4
from engine.attention.tokens_first import TokensFirst
from engine.streaming.lone_tile import DeviceDocuments
from tests.attention.plain import plain

CPU = torch.device("cpu")
SHAPE = CPU, torch.float32, 4, 2, 16


def softmax_by_hand(q, k, v, extent):
    """Tokens first, without documents or with `extent.ends`; a mask of all pairs."""
    q, k, v = (x.movedim(-2, -3) for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[-3] // k.shape[-3], -3) for x in (k, v))
    scores = extent.scale * q @ k.transpose(-1, -2)
    rows, columns = torch.arange(q.shape[-2])[:, None], torch.arange(k.shape[-2])
    hidden = rows < columns if extent.causal else torch.zeros_like(rows < columns)
    if extent.ends is not None:
        of_row = torch.bucketize(rows, extent.ends[1:], right=True)
        hidden = hidden | (of_row != torch.bucketize(columns, extent.ends[1:], right=True))
    scores = scores.masked_fill(hidden, -torch.inf)
    return (scores.softmax(-1) @ v).movedim(-3, -2), scores.logsumexp(-1)


class ByHand(TokensFirst):
    """The definition."""

    name = "by hand"

    def unavailable(self, device, dtype, head_dim):
        return None

    def attend(self, q, k, v, extent):
        return softmax_by_hand(q, k, v, extent)

    def attend_backward(self, grad_out, q, k, v, out, logsumexp, extent):
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        with torch.enable_grad():
            return torch.autograd.grad(softmax_by_hand(*leaves, extent)[0], leaves, grad_out)


class Slow(ByHand):
    name = "slow"

    def attend(self, q, k, v, extent):
        time.sleep(1)
        return super().attend(q, k, v, extent)


class AcrossBorders(ByHand):
    """Forgets where documents end."""

    name = "across"

    def extent_of(self, borders, scale, device):
        return super().extent_of((0, borders[-1]), scale, device)


@pytest.fixture
def choose_among(monkeypatch):
    def choose(*kinds):
        monkeypatch.setattr(select, "BACKENDS", kinds)
        monkeypatch.setattr(select, "_PROBE_BORDERS", (0, 20, 70, 128))
        select.documents_backend.cache_clear()
        return select.documents_backend(*SHAPE)

    yield choose
    select.documents_backend.cache_clear()


def test_the_fastest_right_one_is_chosen(choose_among):
    assert type(choose_among(Slow, AcrossBorders, ByHand)) is ByHand


def test_none_that_is_wrong(choose_among):
    assert choose_among(AcrossBorders) is None
    assert choose_among() is None


def test_cudnn_leaves_documents_of_several_lengths_to_it():
    q, k, v = (torch.randn(1, heads, 12, 8, dtype=torch.float64) for heads in (4, 2, 2))
    out, _ = CudnnFlash(ByHand()).forward_documents(q, k, v, borders=(0, 3, 12), scale=0.3)
    torch.testing.assert_close(out, plain(q, k, v, 0.3, None, [0, 3]))


def test_ends_on_the_device_hold_whatever_the_borders_say():
    """As a graph replays: the same call, other ends, some of them of documents without a token."""
    ends = torch.tensor([0, 3, 12, 12, 12], dtype=torch.int32)
    q, k, v, grad_out = (torch.randn(1, heads, 12, 8, dtype=torch.float64) for heads in (4, 2, 2, 4))
    documents = DeviceDocuments(ByHand(), ends, 12)
    for borders in ((0, 3, 12), (0, 7, 12)):
        ends[1] = borders[1]
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        parts = []
        for start, stop in pairwise(borders):
            part = (x[:, :, start:stop] for x in leaves)
            parts.append(functional.scaled_dot_product_attention(*part, is_causal=True, scale=0.3, enable_gqa=True))
        wanted = torch.cat(parts, 2)
        out, logsumexp = documents.forward_documents(q, k, v, borders=(0, 12), scale=0.3)
        torch.testing.assert_close(out, wanted)
        found = documents.backward_documents(grad_out, q, k, v, out, logsumexp, borders=(0, 12), scale=0.3)
        for mine, theirs in zip(found, torch.autograd.grad(wanted, leaves, grad_out), strict=True):
            torch.testing.assert_close(mine, theirs)


def test_flash_attention_4_says_what_it_lacks():
    assert "NVIDIA GPU" in str(FlashAttention4().unavailable(CPU, torch.bfloat16, 128))
