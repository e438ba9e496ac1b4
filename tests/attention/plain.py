"""Attention by its definition, and a source of earlier keys and values that holds them all."""

from __future__ import annotations

import math

import torch


class Held:
    """Keys and values of a whole sequence, as a source of the earlier ones."""

    def __init__(self, k, v, dtype=None):
        self.k, self.v = k, v
        self.dk, self.dv = torch.zeros_like(k, dtype=dtype), torch.zeros_like(v, dtype=dtype)

    def expect(self, ranges):
        self.expected = list(ranges)

    def kv_cache(self, start, stop):
        assert self.expected.pop(0) == (start, stop)
        return self.k[:, :, start:stop], self.v[:, :, start:stop]

    def add_gradients(self, start, stop, dk, dv):
        self.dk[:, :, start:stop] += dk
        self.dv[:, :, start:stop] += dv


def plain(q, k, v, scale, window, document_starts, device=None):
    n, groups = q.shape[2], q.shape[1] // k.shape[1]
    i, j = torch.arange(n, device=device)[:, None], torch.arange(n, device=device)[None]
    document = torch.bucketize(torch.arange(n, device=device), torch.tensor(document_starts, device=device), right=True)
    seen = (j <= i) & (document[:, None] == document[None])
    if window is not None:
        seen &= j > i - window
    scores = (q @ k.repeat_interleave(groups, 1).transpose(2, 3) * scale).masked_fill(~seen, -math.inf)
    return scores.softmax(-1) @ v.repeat_interleave(groups, 1)
