"""The time model: its units, and how near it is to the steps that were measured."""

from __future__ import annotations

import dataclasses

import pytest

from engine.models.catalogue import find_model
from engine.plan.request import PlanRequest, workload_of
from engine.plan.speeds import speeds_of
from engine.plan.stream_plan import StreamPlan
from engine.plan.time import attention_flops, streamed_time, total_seconds, whole_sequence_time
from engine.plan.transfers import weights_moved
from tests.plan.machines import with_card

H100 = with_card("h100-sxm", ram=512)


def workload(model: str, context: int):
    spec = find_model(model)
    planning = PlanRequest.of(H100, spec, "bf16")
    return workload_of(planning, context)


def named(parts, name):
    return next(part.seconds for part in parts if part.name == name)


def test_attention_operations():
    work = workload("qwen2.5-coder-1.5b", 131_072)
    assert attention_flops(work) == 28 * 4 * 131_072**2 / 2 * 12 * 128
    windowed = workload("starcoder2-3b", 131_072)
    assert attention_flops(windowed) == 30 * 4 * (131_072 * 4096 - 4096**2 / 2) * 24 * 128
    below_the_window = workload("starcoder2-3b", 1024)
    assert attention_flops(below_the_window) == 30 * 4 * 1024**2 / 2 * 24 * 128


def test_units_of_attention():
    """Forward 1, backward 2.5; without the stash one forward more, and one more where layers are not stored."""
    work = workload("qwen2.5-coder-1.5b", 524_288)
    speeds = dataclasses.replace(speeds_of(H100, work), attention_forward=1e12, attention_backward=1e12)
    unit = attention_flops(work) / 1e12

    def units(plan):
        parts = streamed_time(work, plan, speeds)
        return (named(parts, "attention, forward") + named(parts, "attention, backward")) / unit

    assert units(StreamPlan()) == pytest.approx(3.5)
    assert units(StreamPlan(stash=False)) == pytest.approx(4.5)
    # Of the 7 segments of 4 layers the last one's inputs still exist; in each other 3 are computed again.
    assert units(StreamPlan(stash=False, checkpoint_every=4)) == pytest.approx(4.5 + 6 * 3 / 28)
    assert units(StreamPlan(checkpoint_every=4)) == pytest.approx(3.5)
    whole = whole_sequence_time(work, "resident", speeds)
    assert (named(whole, "attention, forward") + named(whole, "attention, backward")) / unit == pytest.approx(4.5)


@pytest.mark.parametrize("home", ["gpu", "host"])
def test_the_time_of_a_windowed_model_is_linear_in_the_context(home):
    plan = StreamPlan(tile=8192, kv_home=home)
    seconds = []
    for n in (2**19, 2**20):
        work = workload("starcoder2-3b", n)
        seconds.append(streamed_time(work, plan, speeds_of(H100, work)))
    assert total_seconds(seconds[1]) == pytest.approx(2 * total_seconds(seconds[0]), rel=0.01)


def test_a_disk_home_is_slower_than_a_host_home():
    work = workload("qwen2.5-coder-1.5b", 131_072)
    seconds = [
        total_seconds(streamed_time(work, StreamPlan(hidden_home=home), speeds_of(H100, work)))
        for home in ("gpu", "host", "disk")
    ]
    assert seconds == sorted(seconds)
    assert seconds[0] < seconds[2]


def test_experts_in_4_bits_are_moved_once_a_pass_and_adapted_by_those_chosen():
    """30 billion parameters in 4.127 bits; of the experts' adapters a token meets 8 of 128."""
    spec = find_model("qwen3-coder-30b-a3b")
    for every, passes in ((1, (48 + 44) / 48), (2, (48 + 44 + 23) / 48)):  # two layers stay from pass to pass
        work = workload(spec.name, 32_768)
        moved = weights_moved(work, StreamPlan(weights="nf4-streamed", checkpoint_every=every))
        assert moved == pytest.approx(passes * spec.decoder_parameters * 4.127 / 8, rel=0.01)
    assert weights_moved(workload(spec.name, 32_768), StreamPlan(weights="nf4")) == 0
    alone, both = (spec.multiplied_lora(16, targets) for targets in (["all-linear"], ["all-linear", "experts"]))
    width = 48 * 8 * (2048 + 2 * 768 + 768 + 2048)
    assert both - alone == 2 * width  # rank 16 over 8 chosen experts
    assert spec.lora_parameters(16, ["experts"]) == 2 * 16 * width
