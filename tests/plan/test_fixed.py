"""What the configuration takes from the planner stays as it was asked for."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import DistributedSection, from_mapping
from engine.errors import EliteError
from engine.hardware.target import target_machine
from engine.models.catalogue import find_model
from engine.plan.choice import choose_plan, request_of_run
from engine.plan.planner import plan_context, tier_table

CARD, MODEL = "rtx-4090", "qwen2.5-coder-1.5b"
HOMES = {"gpu": st.sampled_from(["gpu", "host", "disk"]), "host": st.sampled_from(["host", "disk"])}


def chosen(stream, context=65_536, card=CARD, **sections):
    data = {"model": {"name": MODEL}, "training": {"context": context}, "stream": stream} | sections
    config = from_mapping(data)
    return choose_plan(config, target_machine(card), find_model(MODEL), None).plan


@st.composite
def layouts(draw):
    kv_home = draw(st.sampled_from(["gpu", "host"]))
    tile = draw(st.sampled_from([256, 1024, 6000]))
    layout = {
        "weights": draw(st.sampled_from(["resident", "streamed"])),
        "kv_home": kv_home,
        "hidden_home": draw(HOMES[kv_home]),
        "stash": draw(st.booleans()),
        "checkpoint_every": draw(st.integers(1, 9)),
        "tile": tile,
        "key_block": tile * draw(st.integers(1, 5)),
        "loss_piece": draw(st.sampled_from([128, 1000])),
        "attention": draw(st.sampled_from(["flash", "flash-attn", "efficient", "cudnn"])),
    }
    return {name: layout[name] for name in draw(st.sets(st.sampled_from(sorted(layout))))}


@settings(max_examples=60)
@given(layout=layouts())
def test_a_plan_is_as_it_was_asked_for(layout):
    if layout.get("kv_home") == "host" and layout.get("hidden_home") == "gpu":
        return
    plan = chosen(layout)
    if layout:
        assert plan.layout.stream is not None
    for name, value in layout.items():
        got = getattr(plan.layout.stream, name)
        assert plan.layout.streams_weights == (value == "streamed") if name == "weights" else got == value


@pytest.mark.parametrize("home", ["gpu", "host", "disk"])
def test_a_processor_follows_as_well(home):
    plan = chosen({"hidden_home": home}, context=512, model={"name": "demo", "device": "cpu"})
    assert plan.layout.stream.hidden_home == home


@pytest.mark.parametrize("asked", ["resident", "streamed"])
@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_four_bits_stay_or_travel_as_asked(asked, device):
    """On a processor too, where it saves nothing: a run keeps its choices on every machine."""
    name = "demo" if device == "cpu" else MODEL
    plan = chosen({"weights": asked}, context=512, model={"name": name, "precision": "nf4", "device": device})
    assert plan.layout.weights == ("nf4-streamed" if asked == "streamed" else "nf4")
    assert plan.layout.precision == "nf4"


def test_a_tile_longer_than_the_window_is_the_window():
    plan = chosen({"tile": 16_384, "key_block": 32_768}, context=5000)
    assert (plan.layout.stream.tile, plan.layout.stream.key_block) == (5000, 5000)


def test_no_tier_is_planned_otherwise():
    config = from_mapping({"model": {"name": MODEL}, "stream": {"hidden_home": "host", "stash": True}})
    table = tier_table(request_of_run(config, target_machine(CARD), find_model(MODEL), None))
    assert {(row.layout.stream.hidden_home, row.layout.stream.stash) for row in table.tiers} == {("host", True)}
    free = tier_table(request_of_run(from_mapping({"model": {"name": MODEL}}), *_here(), None))
    assert table.recommended <= free.recommended


def _here():
    return target_machine(CARD), find_model(MODEL)


REFUSED = {
    "a whole step": ({"stream": {"tile": 512}, "training": {"step": "whole"}}, "stream.tile"),
    "homes": ({"stream": {"kv_home": "host", "hidden_home": "gpu"}}, "stream.hidden_home"),
    "blocks": ({"stream": {"tile": 512, "key_block": 256}}, "stream.key_block"),
    "a number": ({"stream": {"tile": 3}}, "stream.tile"),
}


@pytest.mark.parametrize(("data", "field"), REFUSED.values(), ids=REFUSED)
def test_a_contradiction_is_told_beside_its_field(data, field):
    with pytest.raises(EliteError, match=field):
        from_mapping(data)


@pytest.mark.parametrize(
    ("card", "kernel", "says"),
    [
        ("rtx-2060-super", "flash", "Ampere"),
        ("rtx-2060-super", "cudnn", "Ampere"),
        ("rtx-4090", "cpu", "CPUs"),
    ],
)
def test_a_kernel_that_the_card_cannot_run_is_refused(card, kernel, says):
    with pytest.raises(EliteError, match=rf"stream\.attention.*{says}"):
        chosen({"attention": kernel}, card=card)


def test_a_kernel_of_gpus_is_refused_on_a_processor():
    with pytest.raises(EliteError, match=r"stream\.attention.*CPU"):
        chosen({"attention": "flash"}, context=512, model={"name": "demo", "device": "cpu"})


def test_a_shared_window_keeps_its_keys_on_the_gpu():
    config = from_mapping({"model": {"name": MODEL}, "stream": {"kv_home": "host"}})
    planning = dataclasses.replace(
        request_of_run(config, *_here(), None), ranks=2, distributed=DistributedSection(strategy="ring")
    )
    with pytest.raises(EliteError, match=r"stream\.kv_home.*exchange"):
        plan_context(planning, 65_536)
