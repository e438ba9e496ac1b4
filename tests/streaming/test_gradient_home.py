"""Memory that gradients arrive in: kept from step to step, and added to in pieces."""

from __future__ import annotations

import torch
from torch import nn

from engine.models import gradient_home
from engine.models.gradient_home import GradientHome


def _empty(shape, dtype):
    return torch.full(tuple(shape), float("nan"), dtype=dtype)


def test_a_weights_memory_is_kept_and_overwritten():
    home = GradientHome(_empty)
    first, second = nn.Parameter(torch.zeros(3, 5)), nn.Parameter(torch.zeros(7))
    one, two = torch.randn(3, 5), torch.randn(7)
    kept = home.keep(first, one), home.keep(second, two)
    assert torch.equal(kept[0], one)
    assert torch.equal(kept[1], two)
    again = home.keep(first, 2 * one)
    assert again.data_ptr() == kept[0].data_ptr()
    assert torch.equal(again, 2 * one)
    assert torch.equal(kept[1], two)


def test_what_is_added_comes_in_pieces(monkeypatch):
    monkeypatch.setattr(gradient_home, "STAGING_VALUES", 4)
    home = GradientHome(_empty)
    total, more = torch.randn(3, 5), torch.randn(5, 3).T  # as it is, and not contiguous
    expected = total + more
    home.add(total, more)
    assert torch.equal(total, expected)
    assert home._staging.numel() == 4
