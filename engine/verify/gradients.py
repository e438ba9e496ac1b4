"""Proofs of gradient processing: the pipeline that a run composes, on gradients with known properties."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import Parameter

from engine.optim.clipping import SMALLEST_WEIGHT
from engine.verify.proof import Bench, demand
from engine.verify.small import SmallRun


def _pipeline(bench: Bench, **training: Any) -> Any:
    return SmallRun(bench.folder, bench.device, training=training).parts.gradients


def _matrix(bench: Bench, rows: int, columns: int, scale: float = 1.0) -> Parameter:
    generator = torch.Generator().manual_seed(rows)
    parameter = Parameter(torch.randn(rows, columns, generator=generator).to(bench.device))
    parameter.grad = scale * (torch.randn(rows, columns, generator=generator) + 0.5).to(bench.device)
    return parameter


def gradient_centralization(bench: Bench) -> str:
    """Row means are zero."""
    parameter = _matrix(bench, 40, 64, scale=1e-4)
    assert parameter.grad is not None
    before = float(parameter.grad.mean(1).abs().max())
    _pipeline(bench, gradient_centralization=True).apply([parameter], 0)
    after = float(parameter.grad.mean(1).abs().max())
    demand(after < 1e-5 * before, f"largest row mean {before:.1e} → {after:.1e}")
    return f"largest row mean of a gradient {before:.1e} → {after:.1e}"


def adaptive_clipping(bench: Bench) -> str:
    """No row's gradient norm exceeds the ratio times its weights' norm; smaller gradients are unchanged."""
    ratio = 0.01
    parameter = _matrix(bench, 40, 64)
    assert parameter.grad is not None
    with torch.no_grad():
        parameter[0] = 0.0  # as LoRA's B is initialised
        parameter.grad[1] *= 1e-6
    short = parameter.grad[1].clone()
    before = float((parameter.grad.norm(dim=1) / parameter.norm(dim=1).clamp_min(SMALLEST_WEIGHT)).max())
    _pipeline(bench, clipping="adaptive", adaptive_clip=ratio).apply([parameter], 0)
    shares = parameter.grad.norm(dim=1) / parameter.norm(dim=1).clamp_min(SMALLEST_WEIGHT)
    demand(float(shares.max()) < ratio * 1.0001, f"a row's gradient is {float(shares.max()):.2g} of its weights' norm")
    demand(torch.equal(parameter.grad[1], short), "a row within its limit was changed")
    return f"largest gradient of a row, as a share of its weights' norm: {before:.0f} → {float(shares.max()):.4f}"


def gradient_noise(bench: Bench) -> str:
    """The noise's standard deviation follows the annealed schedule, and is the same in a resumed run."""
    pipeline = _pipeline(bench, gradient_noise=0.1, max_grad_norm=1e9)
    deviations, seen = {}, {}
    for step in (0, 100, 10_000):
        parameter = Parameter(torch.zeros(400, 500, device=bench.device))
        parameter.grad = torch.zeros_like(parameter)
        pipeline.apply([parameter], step)
        deviations[step] = float(parameter.grad.std())
        seen[step] = parameter.grad
    again = Parameter(torch.zeros(400, 500, device=bench.device))
    again.grad = torch.zeros_like(again)
    pipeline.apply([again], 100)
    for step, deviation in deviations.items():
        expected = 0.1 / (1 + step) ** 0.275
        demand(
            abs(deviation / expected - 1) < 0.02, f"deviation {deviation:.4f} at step {step}, expected {expected:.4f}"
        )
    demand(torch.equal(again.grad, seen[100]), "a repeated step draws other noise")
    return "deviation " + ", ".join(f"{value:.4f} at step {step:,}" for step, value in deviations.items())
