"""Block-wise attention equals plain attention, forward and backward, for every shape of visibility."""

from __future__ import annotations

import pytest
import torch

from engine.attention.backend import tokens_first
from engine.attention.blockwise import attend, attend_backward
from engine.attention.cpu import CpuFlash
from engine.attention.mask_tiles import causal_pieces
from tests.attention.plain import Held, plain


@pytest.mark.parametrize("window", [None, 1, 5, 16, 40])
@pytest.mark.parametrize("documents", [[0], [0, 3, 37, 38, 64]])
@pytest.mark.parametrize(("n", "tile", "key_block"), [(101, 16, 16), (101, 23, 40), (64, 64, 64), (50, 7, 1000)])
def test_equals_plain_attention(window, documents, n, tile, key_block):
    generator = torch.Generator().manual_seed(0)
    documents = [d for d in documents if d < n]
    q, k, v, g = (torch.randn(1, h, n, 8, dtype=torch.float64, generator=generator) for h in (4, 2, 2, 4))
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    expected = plain(*leaves, 0.3, window, documents)
    expected.backward(g)

    held, dq = Held(k, v), torch.empty_like(q)
    for start in reversed(range(0, n, tile)):
        stop = min(start + tile, n)
        rows = slice(start, stop)
        tile_tensors = [x[:, :, rows] for x in (q, k, v)]
        pieces = list(causal_pieces(start, stop, key_block=key_block, window=window, document_starts=documents))
        how = {"start": start, "pieces": pieces, "earlier": held, "backend": CpuFlash(), "scale": 0.3}
        out, logsumexp = attend(*tile_tensors, **how)
        torch.testing.assert_close(out, expected.detach()[:, :, rows])
        dq[:, :, rows], dk, dv = attend_backward(g[:, :, rows], *tile_tensors, out, logsumexp, **how)
        held.add_gradients(start, stop, dk, dv)
    for name, got, leaf in zip("qkv", (dq, held.dk, held.dv), leaves, strict=True):
        torch.testing.assert_close(got, leaf.grad, msg=f"gradient of {name}")


def test_outputs_have_the_layout_that_kernels_assume():
    """What of a tile's output came from one call and what from several differs in layout, never for the kernels."""
    as_written = torch.randn(1, 20, 3, 8).transpose(1, 2)[:, :, 4:15]
    assert tokens_first(as_written).data_ptr() == as_written.data_ptr()
    joined = torch.cat([as_written, as_written], 2)
    found = tokens_first(joined)
    assert found.transpose(1, 2).is_contiguous()
    assert not joined.transpose(1, 2).is_contiguous()
    torch.testing.assert_close(found, joined)
