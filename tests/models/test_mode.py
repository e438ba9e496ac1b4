"""The mode of every module: set where it is another one, and given back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine.models.mode import ModelMode


def model():
    """As an adapter's: the outermost module trains, the base model inside does not."""
    inner = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).eval()
    outer = nn.Sequential(inner)
    assert outer.training
    return outer


def test_modules_inside_are_set_as_well():
    found = model()
    ModelMode(found).train()
    assert all(module.training for module in found.modules())


@pytest.mark.parametrize("training", [True, False])
def test_evaluating_gives_the_mode_back(training):
    found = model().train(training)
    with ModelMode(found).evaluating():
        assert not any(module.training for module in found.modules())
        assert torch.equal(found(torch.ones(2)), found(torch.ones(2)))
    assert all(module.training is training for module in found.modules())


def test_evaluating_gives_the_mode_back_after_an_error():
    found = model().train()
    with pytest.raises(ZeroDivisionError), ModelMode(found).evaluating():
        raise ZeroDivisionError
    assert found[0][1].training
