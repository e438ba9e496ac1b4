"""Models with random weights, whose buffers must have the values that their architecture gives them."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from engine.models.catalogue import find_model
from engine.models.placement import Placement
from engine.models.random import random_model

SMALL = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 128}


@pytest.mark.parametrize("name", ["gemma-3-4b", "gemma-4-12b"])
def test_a_model_of_random_weights_keeps_the_values_of_its_buffers(name: str) -> None:
    spec = find_model(name)
    settings = tuple((key, SMALL.get(key, value)) for key, value in spec.settings)
    spec = dataclasses.replace(spec, settings=settings, **SMALL)
    placement = Placement(device=torch.device("cpu"), precision="fp32", compute="fp32")
    model = random_model(spec, placement, layers=6)
    assert not any(tensor.is_meta for tensor in (*model.buffers(), *model.parameters()))
    scales = [float(buffer) for key, buffer in model.named_buffers() if key.endswith("embed_scale")]
    assert scales == [pytest.approx(64**0.5)]
    assert torch.isfinite(model(input_ids=torch.arange(12)[None]).logits).all()
