"""How cuDNN's backend turns documents of one length into a batch; its kernel itself needs a GPU (tests/streaming)."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from engine.attention.cudnn import SHORTEST, as_batch, as_row, equal_length, wide_head_refusal
from tests.attention.plain import plain


@pytest.mark.parametrize("shape", [(1, 6, 12, 5), (1, 2, 12)])
def test_there_and_back(shape):
    x = torch.randn(shape)
    batch = as_batch(x, 4)
    assert batch.shape == (3, shape[1], 4, *shape[3:])
    assert torch.equal(batch[1], x[0, :, 4:8])
    assert torch.equal(as_row(batch), x)


def test_a_batch_is_seen_in_place():
    """Kernels lay tokens side by side: neither way is a copy."""
    x = torch.randn(1, 12, 6, 5).transpose(1, 2)
    assert as_batch(x, 4).data_ptr() == x.data_ptr()
    assert as_row(as_batch(x, 4)).data_ptr() == x.data_ptr()


def test_documents_by_themselves():
    q, k, v = (torch.randn(1, heads, 12, 8, dtype=torch.float64) for heads in (4, 2, 2))
    batch = (as_batch(x, 4) for x in (q, k, v))
    out = functional.scaled_dot_product_attention(*batch, is_causal=True, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(as_row(out), plain(q, k, v, 0.3, None, [0, 4, 8]))


@pytest.mark.parametrize(
    ("borders", "rows"),
    [
        ((0, SHORTEST, 2 * SHORTEST), SHORTEST),
        ((0, 5000, 10000, 15000), 5000),
        ((0, SHORTEST, 2 * SHORTEST + 1), None),
        ((0, 100, 200), None),
    ],
)
def test_when_documents_are_a_batch(borders, rows):
    assert equal_length(borders) == rows


@pytest.mark.parametrize(
    ("capability", "version", "serves"),
    [
        ((9, 0), 91000, True),
        ((9, 0), 90900, False),
        ((8, 0), 91500, False),
        ((10, 0), 91500, False),
        ((12, 0), 91500, False),
    ],
)
def test_wide_heads_are_for_hopper_and_a_new_cudnn(capability, version, serves):
    assert (wide_head_refusal(capability, version, 256) is None) == serves
