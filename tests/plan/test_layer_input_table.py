"""Home of the table of layers' own inputs: what the ledger counts, and when the planner leaves it on the host."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from engine.config import TrainingSection
from engine.models.catalogue import find_model
from engine.plan.memory import streamed_ledger, whole_sequence_ledger
from engine.plan.planner import plan_context
from engine.plan.request import PlanRequest, workload_of
from engine.plan.search import Budget, search
from engine.plan.step_layout import StepLayout
from engine.plan.stream_plan import StreamPlan
from engine.plan.transfers import moved_by
from tests.plan.machines import with_card

MODELS = ("gemma-4-e2b", "gemma-4-e4b")
TABLE = "table of the layers' own inputs, at home"


def table_bytes(spec):
    """Of transformers' own module, which is built without its numbers."""
    config = AutoConfig.for_model(spec.family, **{name: _plain(value) for name, value in spec.settings})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return model.get_submodule("model.embed_tokens_per_layer").weight.nbytes


def _plain(value):
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("model", MODELS)
def test_the_table_moves_from_the_gpu_to_the_host(model):
    spec = find_model(model)
    here = workload_of(PlanRequest.of(with_card("rtx-4090", ram=64), spec, "nf4"), 65_536)
    there = dataclasses.replace(here, table_home="host")
    wanted = table_bytes(spec)
    assert wanted > 4e9
    for ledger in (
        lambda work: streamed_ledger(work, StreamPlan(weights="nf4")),
        lambda work: streamed_ledger(work, StreamPlan(weights="nf4-streamed")),
        lambda work: whole_sequence_ledger(work, "nf4"),
    ):
        before, after = ledger(here), ledger(there)
        assert before.peak("gpu") - after.peak("gpu") == pytest.approx(1.04 * wanted, rel=1e-6)  # the allocator's slack
        parts = {part.name: part for part in after.parts}
        assert (parts[TABLE].where, parts[TABLE].bytes) == ("host", wanted)
        assert TABLE not in {part.name for part in before.parts}
        staged = 2 * 1024 * wanted // spec.vocab_size
        assert parts["its rows on their way to the GPU"].bytes == staged


def test_a_model_that_is_converted_passes_through_the_host():
    """RTX 2060 computes in fp16: the files' bf16 is converted in host memory before it moves to the GPU."""
    spec = find_model("gemma-4-e2b")
    work = workload_of(PlanRequest.of(with_card("rtx-2060-super", ram=64), spec, "fp16"), 4096)
    work = dataclasses.replace(work, table_home="host")
    parts = {part.name: part.bytes for part in streamed_ledger(work, StreamPlan()).parts}
    later = sum(part.bytes for part in streamed_ledger(work, StreamPlan()).parts if part.where == "host")
    assert work.compute_type == "fp16"
    loaded = 2 * spec.parameters  # the table included
    assert later - parts["the training process itself"] == pytest.approx(loaded, rel=1e-6)
    bf16 = dataclasses.replace(work, compute_type="bf16")
    assert not {"loading, before the step's own buffers"} & {p.name for p in streamed_ledger(bf16, StreamPlan()).parts}


@pytest.mark.parametrize("context", [4096, 32_768, 524_288])
@pytest.mark.parametrize("model", MODELS)
def test_a_card_of_8_gb_trains_what_it_had_no_room_for(model, context):
    request = PlanRequest.of(with_card("rtx-4060", ram=32), find_model(model))
    row = plan_context(request, context)
    assert row.fits
    assert row.layout.table_home == "host"
    assert row.layout.as_json()["table_home"] == "host"
    assert StepLayout.from_json(row.layout.as_json()) == row.layout
    lines = {part.name: part for part in row.parts}
    assert lines[TABLE].where == "host"
    work = workload_of(request, context)
    resident = search(work, request.machine, Budget.of(request.machine), request.weights)
    assert not any(candidate.fits for candidate in resident)


@pytest.mark.parametrize("card", ["rtx-3060-12gb", "rtx-4090", "h100-sxm"])
@pytest.mark.parametrize("context", [4096, 131_072])
@pytest.mark.parametrize("model", MODELS)
def test_the_faster_home_is_chosen(card, context, model):
    """All candidates of both homes, compared by their seconds within one precision."""
    request = PlanRequest.of(with_card(card, ram=64), find_model(model), "nf4")
    row = plan_context(request, context)
    seconds = {"gpu": math.inf, "host": math.inf}
    for home in seconds:
        work = dataclasses.replace(workload_of(request, context), table_home=home)
        found = search(work, request.machine, Budget.of(request.machine), request.weights)
        seconds[home] = min((candidate.seconds for candidate in found if candidate.fits), default=math.inf)
    assert row.step_seconds / row.windows_per_step <= 1.01 * min(seconds.values())
    assert seconds[row.layout.table_home] <= 1.01 * min(seconds.values())


def test_looking_rows_up_takes_time_and_moves_them():
    spec = find_model("gemma-4-e2b")
    request = PlanRequest.of(with_card("rtx-4060", ram=32), spec, "nf4")
    row = plan_context(request, 131_072)
    part = next(part for part in row.time if part.name == "looking up the layers' own inputs on the host")
    rows = 131_072 * 35 * 256 * 2
    assert part.seconds > rows / 25e9
    work = dataclasses.replace(workload_of(request, 131_072), table_home="host")
    moved = moved_by(work, row.layout.stream)
    assert moved.table == rows
    assert "rows of the layers' own inputs" in moved.words
    assert moved_by(dataclasses.replace(work, on_gpu=False), row.layout.stream).table == 0


def test_a_trained_table_and_other_models_stay_where_they_are():
    machine = with_card("rtx-3060-12gb", ram=256)
    full = PlanRequest.of(machine, find_model("gemma-4-e2b"), "bf16", training=TrainingSection(method="full"))
    assert plan_context(full, 4096).layout.table_home == "gpu"
    for model in ("qwen2.5-coder-1.5b", "gemma-4-12b"):
        row = plan_context(PlanRequest.of(machine, find_model(model)), 4096)
        assert row.layout.table_home == "gpu"
        assert "table_home" not in row.layout.as_json()
