"""Which layouts are as the section `stream` asks; a resumed run keeps no other."""

from __future__ import annotations

import dataclasses

import pytest

from engine.plan.step_layout import StepLayout
from engine.plan.stream_plan import StreamPlan
from engine.steps.fallback_policy import FallbackPolicy

PLAN = StreamPlan(tile=1024, key_block=4096, hidden_home="host")


def policy(way="auto", **fixed):
    return FallbackPolicy(
        context=8192, layers=4, quantised=False, on_gpu=True, streamable=True, way=way, fixed=fixed
    )  # fmt: skip


@pytest.mark.parametrize(
    ("way", "fixed", "allowed"),
    [
        ("auto", {}, {"whole", "streamed"}),
        ("whole", {}, {"whole"}),
        ("streamed", {}, {"streamed"}),
        ("auto", {"tile": 1024}, {"streamed"}),
        ("auto", {"tile": 2048}, set()),
        ("auto", {"weights": "resident"}, {"streamed"}),
        ("auto", {"weights": "streamed"}, set()),
        ("streamed", {"hidden_home": "disk"}, set()),
    ],
)
def test_a_resumed_run_keeps_a_layout_that_is_still_asked_for(way, fixed, allowed):
    found = {"whole": StepLayout(recompute=True), "streamed": StepLayout(stream=PLAN)}
    assert {name for name, layout in found.items() if policy(way, **fixed).allows(layout)} == allowed


def test_weights_in_four_bits_count_as_resident():
    assert policy(weights="resident").allows(StepLayout(stream=dataclasses.replace(PLAN, weights="nf4")))


def test_four_bits_are_streamed_when_the_gpu_is_full():
    """In its own format, because the codes in memory are the only weights that the run has."""
    quantised = dataclasses.replace(policy(), quantised=True)
    layout, seen = StepLayout(stream=dataclasses.replace(PLAN, weights="nf4"), precision="nf4"), []
    while (layout := quantised.smaller(layout, "GPU")) is not None:
        seen.append(layout.stream.weights)
    assert set(seen) == {"nf4", "nf4-streamed"}
    assert seen == sorted(seen)
    kept = dataclasses.replace(quantised, fixed={"weights": "resident"})
    layout = StepLayout(stream=dataclasses.replace(PLAN, weights="nf4"), precision="nf4")
    while (layout := kept.smaller(layout, "GPU")) is not None:
        assert layout.stream.weights == "nf4"


def test_what_is_longer_than_the_window_is_the_window():
    plan = dataclasses.replace(PLAN, tile=8192, key_block=8192, checkpoint_every=4)
    assert policy(tile=16_384, key_block=65_536, checkpoint_every=9).allows(StepLayout(stream=plan))
