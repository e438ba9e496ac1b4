"""Gradients inside the chunks of a gated delta rule, beside autograd of the equations that they belong to."""

from __future__ import annotations

import math

import pytest
import torch

from engine.models.delta_rule import chunk_gradients


def objective(q, k, w, decay, v, do, h, dh, dv, scale, size):
    """What the gradients are of, one chunk and head after another; `decay` is the natural logarithm."""
    total = 0.0
    repeats = v.shape[2] // q.shape[2]
    for b in range(q.shape[0]):
        for head in range(v.shape[2]):
            for chunk, start in enumerate(range(0, q.shape[1], size)):
                rows = slice(start, start + size)
                qc, kc = q[b, rows, head // repeats], k[b, rows, head // repeats]
                vc, wc, g = v[b, rows, head], w[b, rows, head], decay[b, rows, head]
                state = h[b, chunk, head]
                scores = torch.tril((qc @ kc.T) * torch.exp(g[:, None] - g[None, :]))
                out = scale * (torch.exp(g)[:, None] * (qc @ state) + scores @ vc)
                after = torch.exp(g[-1]) * state + (torch.exp(g[-1] - g)[:, None] * kc).T @ vc
                total = total + (out * do[b, rows, head]).sum() + (after * dh[b, chunk, head]).sum()
                total = total - ((wc @ state) * dv[b, rows, head]).sum()
    return total


@pytest.mark.parametrize("tokens", [64 * 3, 64 * 67 + 5, 40])
@pytest.mark.parametrize("heads", [2, 4])
@pytest.mark.parametrize("first", [False, True])
def test_gradients_are_those_of_autograd(tokens, heads, first):
    generator = torch.Generator().manual_seed(tokens + heads)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    chunks, size = -(-tokens // 64), 64
    q, k = (draw(2, tokens, 2, 6).requires_grad_() for _ in range(2))
    w = draw(2, tokens, heads, 6).requires_grad_()
    v, do, dv = (draw(2, tokens, heads, 8) for _ in range(3))
    h, dh = (draw(2, chunks, heads, 6, 8) for _ in range(2))
    steps = -0.1 * torch.rand(2, tokens, heads, generator=generator, dtype=torch.float64)
    decay = torch.cat([part.cumsum(1) for part in steps.split(size, dim=1)], dim=1).requires_grad_()
    scale = 6**-0.5
    wanted = torch.autograd.grad(objective(q, k, w, decay, v, do, h, dh, dv, scale, size), [q, k, w, decay])
    states = [x.transpose(-1, -2).contiguous() if first else x for x in (h, dh)]
    with torch.no_grad():
        found = chunk_gradients(q, k, v, do, *states, w, decay / math.log(2), dv, scale, state_v_first=first)
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).norm() < 1e-10 * other.norm()


def test_in_16_bits_the_gradients_are_as_close_as_16_bits_are():
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    inputs = [draw(1, 256, 4, 32) for _ in range(2)] + [draw(1, 256, 4, 32) for _ in range(2)]
    h, dh = draw(1, 4, 4, 32, 32), draw(1, 4, 4, 32, 32)
    w, dv = draw(1, 256, 4, 32), draw(1, 256, 4, 32)
    g = -torch.rand(1, 4, 64, 4, generator=generator).cumsum(2).view(1, 256, 4)
    exact = chunk_gradients(*(x.double() for x in (*inputs, h, dh, w)), g, dv.double(), 0.2)
    found = chunk_gradients(*(x.bfloat16() for x in (*inputs, h, dh, w)), g, dv.bfloat16(), 0.2)
    for one, other in zip(found, exact, strict=True):
        assert (one - other).norm() < 0.02 * other.norm()
