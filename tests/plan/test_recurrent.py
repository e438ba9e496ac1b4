"""What a plan says of recurrent layers, beside what a streamed step of such a model stores and computes."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from engine.config import DistributedSection, from_mapping
from engine.errors import EliteError
from engine.hardware.machine import GIB
from engine.hardware.target import target_machine
from engine.models import families
from engine.models.catalogue import find_model
from engine.models.layer_shapes import RecurrentShape
from engine.models.layers import decoder_layers
from engine.plan.cluster import Cluster, cluster_plans
from engine.plan.memory import streamed_ledger
from engine.plan.planner import plan_context
from engine.plan.request import PlanRequest, workload_of
from engine.plan.speeds import Speeds
from engine.plan.strategy import choose_strategy
from engine.plan.stream_plan import StreamPlan
from engine.plan.time import attention_flops, streamed_time
from engine.plan.workload import Workload
from engine.streaming.step import StreamedStep
from engine.verify.observed_recurrence import observed_recurrence
from tests.streaming.test_recurrent import FAMILIES, SHAPE, make_model, tokens

STORED = "states of the recurrent layers at the tiles' borders"
QWEN = RecurrentShape(layers=18, without_attention=18, state_values=2**18, conv_values=18432, channels=6144)


def observed(family, **changes):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(family, **{**SHAPE, **FAMILIES[family], **changes}), dtype=torch.float32
        )
    return observed_recurrence(decoder_layers(model), SHAPE["hidden_size"])


@pytest.mark.parametrize("family", ["qwen3_5_text", "lfm2", "falcon_h1"])
def test_the_states_are_as_large_as_planned(family, monkeypatch):
    monkeypatch.setattr(families, "FAMILIES", {**families.FAMILIES, family: families.Family()})
    shape = observed(family)
    model = make_model(family, torch.float32)
    with StreamedStep(model, StreamPlan(tile=16, key_block=32), device=torch.device("cpu")) as step:
        step.run(tokens())
        stored = step.streamed.workspace.border_states.stored_bytes
    tiles = -(-len(tokens()) // 16)
    assert stored == shape.layers * tiles * 4 * (shape.state_values + shape.conv_values)
    kinds = {"qwen3_5_text": (3, 3), "lfm2": (3, 3), "falcon_h1": (4, 0)}
    assert (shape.layers, shape.without_attention) == kinds[family]


def test_shapes_of_a_published_size():
    """16 heads with keys and values of 128: 2^18 numbers; a convolution over 3 · 16 · 128 channels keeps 3 inputs."""
    sizes = {"hidden_size": 2048, "intermediate_size": 64, "num_hidden_layers": 24, "vocab_size": 64}
    heads = {"linear_num_value_heads": 16, "num_attention_heads": 8, "num_key_value_heads": 2}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3_5_text", **sizes, **heads))
    assert observed_recurrence(decoder_layers(model), 2048) == QWEN


def workload(recurrent, context=2**17):
    spec = dataclasses.replace(find_model("qwen2.5-coder-1.5b").with_layers(24), recurrent=recurrent)
    return Workload(spec=spec, context=context, compute_type="bf16", lora_parameters=10**7)


def test_a_plan_counts_states_and_a_quarter_of_the_attention():
    plan = StreamPlan(tile=4096, key_block=8192)
    lines = {line.name: line for line in streamed_ledger(workload(QWEN), plan).parts}
    plain = {line.name: line for line in streamed_ledger(workload(None), plan).parts}
    assert lines[STORED].bytes == 18 * 32 * (4 * 2**18 + 2 * 18432)
    assert lines[STORED].where == "host"
    assert STORED not in plain
    saved = "stash: attention outputs and logsumexp"
    assert 4 * lines[saved].bytes == plain[saved].bytes
    assert 4 * attention_flops(workload(QWEN)) == attention_flops(workload(None))


def test_a_recurrent_layer_takes_time_in_proportion_to_its_tokens():
    speeds = Speeds(
        matrix=5e14, head=5e14, attention_forward=5e14, attention_backward=4e14, memory=4e12, link=5e10, disk=3e9
    )

    def seconds(context):
        parts = streamed_time(workload(QWEN, context), StreamPlan(tile=4096, key_block=8192), speeds)
        return next(part.seconds for part in parts if part.name == "recurrent rules")

    assert seconds(2**18) == pytest.approx(2 * seconds(2**17))


def of_ranks(strategy="auto", ranks=4):
    machine = target_machine("h100-sxm*4", ram=512 * GIB)
    request = PlanRequest.of(machine, workload(QWEN).spec)
    return dataclasses.replace(request, ranks=ranks, distributed=DistributedSection(strategy=strategy))


def test_ranks_do_not_share_a_window_of_a_recurrent_model():
    """The states of its layers are not passed from rank to rank: each rank computes windows of its own."""
    assert plan_context(of_ranks(), 2**20).layout.window_ranks == 1
    plain = dataclasses.replace(of_ranks(), spec=workload(None).spec)
    assert plan_context(plain, 2**20).layout.window_ranks == 4
    cluster = Cluster(machine=of_ranks().machine, card_link=3e11, host_link=5e10)
    strategies = {plan.strategy for plan in cluster_plans(of_ranks(), cluster, 2**17)}
    assert "data" in strategies
    assert not strategies & {"ring", "ulysses"}


@pytest.mark.parametrize("strategy", ["ring", "ulysses"])
def test_a_strategy_that_shares_windows_is_refused_by_plan_and_start(strategy):
    with pytest.raises(EliteError, match=rf"{strategy} cannot be used here: .* not passed from rank to rank"):
        plan_context(of_ranks(strategy), 2**20)
    config = from_mapping({"distributed": {"strategy": strategy}})
    with pytest.raises(EliteError, match=r"not passed from rank to rank"):
        choose_strategy(config, of_ranks().spec, ranks=4, streamed=True, spreads=True)


def test_a_million_tokens_of_a_recurrent_model_are_planned_for_a_gaming_card():
    machine = target_machine("rtx-3060-12gb", ram=64 * GIB)
    plans = {}
    for name in ("qwen2.5-coder-1.5b", "qwen3.5-2b"):
        plans[name] = plan_context(PlanRequest.of(machine, find_model(name)), 2**20)
    assert all(plan.fits for plan in plans.values())
    assert plans["qwen3.5-2b"].step_seconds < plans["qwen2.5-coder-1.5b"].step_seconds / 2
    assert any(part.name == "recurrent rules" for part in plans["qwen3.5-2b"].time)


def test_without_the_kernels_a_layer_holds_more():
    machine = target_machine("rtx-3060-12gb", ram=64 * GIB)
    bare = dataclasses.replace(machine, libraries={"fla-core": None, "liger-kernel": "0.8.5"})
    spec, plan = find_model("qwen3.5-2b"), StreamPlan(tile=4096, key_block=8192)
    works = [workload_of(PlanRequest.of(each, spec), 2**17) for each in (machine, bare)]
    served, plain = (streamed_ledger(work, plan).peak("gpu") for work in works)
    assert [work.recurrent_kernels for work in works] == [True, False]
    assert served < plain - 2**28
