"""Plans for several cards and hosts."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from engine import cli
from engine.config import DistributedSection, TrainingSection, from_mapping
from engine.errors import EliteError
from engine.hardware.machine import GIB
from engine.hardware.target import target_machine
from engine.models.catalogue import find_model
from engine.plan.cluster import Cluster, card_link, cluster_plans, host_link, share_of
from engine.plan.planner import plan_context
from engine.plan.request import PlanRequest
from engine.plan.strategy import choose_strategy, undivided_heads


def planning(hardware, **changes):
    machine = target_machine(hardware, ram=512 * GIB)
    spec = find_model("qwen2.5-coder-1.5b")
    return PlanRequest.of(machine, spec, **changes)


def plans_of(hardware, context, hosts=1, link="nvlink", **changes):
    made = planning(hardware, **changes)
    first = made.machine.gpus[0]
    cluster = Cluster(machine=made.machine, hosts=hosts, card_link=card_link(link, first), host_link=host_link("400g"))
    return {plan.strategy: plan for plan in cluster_plans(made, cluster, context)}


def test_a_long_window_is_spread_and_many_short_ones_are_shared_out():
    long = plans_of("h100-sxm*8", 1 << 20)
    assert next(iter(long)) == "ring"
    assert 6.0 < long["ring"].speed_up < 9.0
    assert long["data"].speed_up < 1.1  # one window: seven ranks have nothing to do
    many = plans_of("h100-sxm*2", 8192, training=TrainingSection(tokens_per_update=16 * 8192))
    assert many["data"].speed_up == pytest.approx(2.0, rel=0.05)
    assert "ulysses" in many
    assert "ulysses" not in long  # two key heads do not divide by eight


def test_heads_of_every_layer_are_shared_out():
    """Laguna's and Gemma 4's layers have different numbers of heads."""
    spec = find_model("qwen2.5-coder-1.5b")
    (kind,) = spec.attentions
    assert undivided_heads(spec, 2) is None
    mixed = replace(spec, attended=(kind, replace(kind, heads=9, kv_heads=3)))
    assert undivided_heads(mixed, 2) == "9 query and 3 key heads do not divide by 2 ranks"
    assert undivided_heads(mixed, 3) == "12 query and 2 key heads do not divide by 3 ranks"
    config = from_mapping({"distributed": {"strategy": "ulysses"}})
    with pytest.raises(EliteError, match="9 query and 3 key heads do not divide by 2 ranks"):
        choose_strategy(config, mixed, ranks=2, streamed=True, spreads=True)


def test_a_slow_link_is_waited_for():
    fast, slow = (plans_of("h100-sxm*2", 1 << 17, link=link)["ulysses"].seconds for link in ("nvlink", "0.1"))
    assert slow > 2 * fast


def test_all_wait_for_the_slowest_card():
    both = plans_of("rtx-3090,rtx-4090", 1 << 15, training=TrainingSection(tokens_per_update=4 << 15))["data"].seconds
    slow = plans_of("rtx-3090*2", 1 << 15, training=TrainingSection(tokens_per_update=4 << 15))["data"].seconds
    quick = plans_of("rtx-4090*2", 1 << 15, training=TrainingSection(tokens_per_update=4 << 15))["data"].seconds
    assert both == pytest.approx(max(slow, quick), rel=0.01)


def test_a_share_of_a_window_needs_less_memory_than_all_of_it():
    made = planning("rtx-3090*4").stepping("streamed")
    alone = plan_context(replace(made, machine=replace(made.machine, gpus=made.machine.gpus[:1])), 1 << 19)
    spread = plan_context(replace(made, ranks=4, distributed=DistributedSection(strategy="ring")), 1 << 19)
    assert spread.layout.window_ranks == 4
    assert spread.host_peak_bytes + spread.gpu_peak_bytes < alone.host_peak_bytes + alone.gpu_peak_bytes
    assert any("on their way round" in part.name for part in spread.parts)


def test_the_command_prints_the_table_and_what_starts_it(capsys):
    arguments = ["plan", "--model", "qwen2.5-coder-1.5b", "--hardware", "rtx-3090*2", "--hosts", "2", "--tier", "5"]
    assert cli.main([*arguments, "--json"]) == 0
    cluster = json.loads(capsys.readouterr().out)["cluster"]
    assert (cluster["hosts"], cluster["ranks"]) == (2, 4)
    assert {plan["strategy"] for plan in cluster["strategies"]} >= {"data", "ring", "zero3"}
    assert "--node-rank 1" in cluster["commands"][1]
    assert cli.main(arguments) == 0
    assert "deepspeed --hostfile" in capsys.readouterr().out


def test_a_count_that_is_none_is_refused():
    with pytest.raises(EliteError, match=r"rtx-3090\*0"):
        target_machine("rtx-3090*0")


MEASURED = {
    (262_144, 28, 1): 45.3,
    (262_144, 28, 2): 22.9,
    (524_288, 14, 1): 82.4,
    (524_288, 14, 2): 42.9,
}
"""Seconds of one step by context, layers and ranks: Qwen2.5-Coder-1.5B, bf16, LoRA r=16, two H200 with NVLink
(267 GB/s), the ring in zigzag order (benchmarks/distributed_gpu.py)."""


@pytest.mark.parametrize(("context", "layers", "ranks"), MEASURED)
def test_the_ring_on_two_gpus_takes_what_was_predicted(context, layers, ranks):
    spec = find_model("qwen2.5-coder-1.5b").with_layers(layers)
    machine = target_machine("h200", ram=256 * GIB)
    asked = PlanRequest(
        machine=share_of(machine, ranks),
        spec=spec,
        compute_type="bf16",
        weights=("resident",),
        training=TrainingSection(step="streamed", tokens_per_update=context),
        ranks=ranks,
        distributed=DistributedSection(strategy="ring" if ranks > 1 else "auto"),
        rank_link=267e9,
    )
    seconds = plan_context(asked, context).step_seconds
    assert seconds == pytest.approx(MEASURED[context, layers, ranks], rel=0.1)


def test_a_shortened_model_keeps_its_share_of_windowed_layers():
    windowed = replace(find_model("qwen2.5-coder-1.5b"), layers=24, full_attention_layers=4)
    assert (windowed.with_layers(12).layers, windowed.with_layers(12).full_attention_layers) == (12, 2)
    plain = find_model("qwen2.5-coder-1.5b").with_layers(14)
    assert plain.full_attention_layers == plain.layers == 14
