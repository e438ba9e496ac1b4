"""A benchmark's random part of a model whose last layers take the keys and values of earlier ones."""

from __future__ import annotations

import dataclasses

from engine.models.catalogue import find_model
from engine.models.placement import choose_placement
from engine.models.random import random_model


def test_the_first_layers_of_e2b_run_without_those_that_share():
    spec = find_model("gemma-4-e2b")
    small = {"hidden_size": 32, "intermediate_size": 16, "vocab_size": 64, "vocab_size_per_layer_input": 64}
    settings = tuple({**dict(spec.settings), **small}.items())
    model = random_model(
        dataclasses.replace(spec, vocab_size=64, hidden_size=32, settings=settings),
        choose_placement("cpu", "fp32"),
        layers=2,
    )
    assert model.config.num_kv_shared_layers == 0
    assert len(model.model.layers) == 2
    part = spec.with_layers(12)
    assert sum(kind.layers for kind in part.attended) == 12
    assert {kind.use for kind in part.attended} == {"own"}
    assert spec.with_layers(35).attended == spec.attended
