"""The fused loss in Triton's interpreter, which runs a GPU's kernels on the CPU: the loss and gradients of torch's."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

CHILD = """
import itertools
import weakref

import torch
from torch import nn
from engine.streaming import cross_entropy_kernel, loss

torch.manual_seed(0)
hidden, labels = 30 * torch.randn(13, 16), torch.randint(0, 50, (13,))
labels[3] = loss.IGNORED
weights = torch.randn(13, dtype=torch.float64)
cross_entropy_kernel._BLOCK = 16  # of a vocabulary of 50: whole blocks and a part of one


assert loss.kernel_is_right(torch.device("cpu"))


class Whole(nn.Module):
    # A head that does more than its linear layer.

    def __init__(self, after):
        super().__init__()
        self.last, self.after = nn.Linear(16, 50, bias=False), after
        self.requires_grad_(False)

    @property
    def weight(self):
        return self.last.weight

    def forward(self, hidden):
        return self.after(self.last(hidden))


def run(head, fused, smoothing, coefficients):
    head.weight.grad = None
    loss._has_fused_cross_entropy = lambda device: fused
    total, gradient = loss.loss_and_gradient(
        hidden, labels, head, piece=5, scale=0.37, label_smoothing=smoothing, coefficients=coefficients
    )
    return total, gradient, torch.zeros(()) if head.weight.grad is None else head.weight.grad.clone()


for trained, smoothing, given in itertools.product((False, True), (0.0, 0.1), (None, weights)):
    head = nn.Linear(16, 50, bias=False).requires_grad_(trained)
    for found, expected in zip(run(head, True, smoothing, given), run(head, False, smoothing, given), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=5e-6)

AFTER = {
    "caps": lambda x: torch.tanh(x / 3.0) * 3.0,
    "scales": lambda x: x / 7.0,
    "saves what it returns": lambda x: torch.exp(x / 50.0),  # which its backward pass reads
    "returns its columns first": lambda x: (x.T.contiguous() * 2.0).T,
}
for after, smoothing, given in itertools.product(AFTER.values(), (0.0, 0.1), (None, weights)):
    head = Whole(after)
    kept = head.weight.clone()
    for found, expected in zip(run(head, True, smoothing, given), run(head, False, smoothing, given), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=5e-6)
    assert torch.equal(head.weight, kept)


def fails(*_):
    raise torch.OutOfMemoryError


kept = []
loss._gradient_over_logits = fails
head = Whole(lambda x: kept.append(torch.tanh(x)) or kept[-1] * 3.0)
try:
    run(head, True, 0.0, None)
except torch.OutOfMemoryError:
    kept = [weakref.ref(tensor) for tensor in kept]
assert [tensor() for tensor in kept] == [None], "memory ran out, and the head's results stay"
"""


def test_the_kernels_loss_and_gradients_are_torchs():
    """Of frozen, trained, scaling and capping heads, with and without label smoothing, and weights of either sign."""
    environment = os.environ | {"TRITON_INTERPRET": "1"}  # read when triton is imported
    command = [sys.executable, "-c", CHILD]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
