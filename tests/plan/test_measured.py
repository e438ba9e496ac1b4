"""Ledger and time model against what steps took on a GPU (benchmarks/memory_gpu.py, benchmarks/streaming_gpu.py).

Of a model that is trained as a whole the benchmark holds less than a run: no copy of the states to go back to, and no
gradients of windows before. Each is a part of the ledger, and is taken off by name.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from pathlib import Path

import pytest
from transformers import AutoConfig

from engine.config import LoraSection, TrainingSection
from engine.hardware.machine import GIB
from engine.models.catalogue import find_model
from engine.models.spec import as_spec
from engine.plan.full_tuning import STATE_TO_GO_BACK_TO
from engine.plan.ledger_lines import CONTEXT, HOST_PROCESS
from engine.plan.memory import streamed_ledger, whole_sequence_ledger
from engine.plan.request import PlanRequest, workload_of
from engine.plan.search import HEADROOM
from engine.plan.speeds import attention_efficiency, speeds_of
from engine.plan.stream_plan import StreamPlan
from engine.plan.time import UPDATE, streamed_time, whole_sequence_time
from engine.plan.weight_lines import QUANTISING
from engine.verify.observed_shape import observed_shape
from tests.plan.machines import with_card

RESULTS = Path(__file__).parents[2] / "benchmarks/results"
CARDS = {"NVIDIA H100 80GB HBM3": with_card("h100-sxm", ram=512), "NVIDIA H200": with_card("h200", ram=512)}
CASES = [
    {**case, "card": stored["machine"]["card"]}
    for stored in (json.loads((RESULTS / f"memory-{card}.json").read_text()) for card in ("h100", "h200"))
    for case in stored["cases"]
]
STEPS = json.loads((RESULTS / "streaming.json").read_text())


def _workload(case):
    spec = dataclasses.replace(find_model(case["model"]), layers=case["layers"], full_attention_layers=case["layers"])
    planning = PlanRequest(
        machine=CARDS[case["card"]],
        spec=spec,
        compute_type="bf16",
        weights=("resident",),
        lora=LoraSection(rank=case.get("rank", 16)),
        training=TrainingSection(method="full" if case.get("full") else "lora"),
    )
    work = workload_of(planning, case["context"])
    fused = case.get("fused", case.get("fused_kernels"))
    backend = case["backend"] or work.backend
    return dataclasses.replace(
        work,
        master_home=case.get("full"),
        fused_kernels=bool(fused),
        served_norms=bool(fused),
        backend=backend,
        attention_efficiency=attention_efficiency(planning.machine.gpus[0], spec.head_dim, backend),
    )


def _weights(case):
    return "nf4" if case["precision"] == "nf4" else "resident"


def _ledger(case):
    work = _workload(case)
    if case["plan"] is None:
        return whole_sequence_ledger(work, _weights(case), recompute=case["recompute"])
    return streamed_ledger(work, StreamPlan(**case["plan"]))


def _absent(case, phase):
    """Bytes of gradients of earlier windows on the GPU: the benchmark's step starts without, and ends with its own."""
    return 4 * _workload(case).spec.parameters if case.get("full") == "gpu" and phase != "backward" else 0


def _allocated(case):
    """What torch counts as allocated: without the context, and without the room for the allocator's own losses."""
    return max(bytes_ - _absent(case, phase) for phase, bytes_ in _ledger(case).phases)


def _gpu_errors():
    errors = [_allocated(case) / case["gpu_peak_allocated"] - 1 for case in CASES]
    for step in STEPS:  # measured without Adam's two states
        adam = 8 * _workload(step).lora_parameters
        errors.append((_allocated(step) - adam) / step["gpu_peak_allocated"] - 1)
    return errors


def test_the_phases_are_what_the_parts_sum_to():
    for case in CASES:
        ledger = _ledger(case)
        inside = [
            part for part in ledger.parts if part.where == "gpu" and part.name not in (CONTEXT, "allocator slack")
        ]
        assert max(bytes_ for _, bytes_ in ledger.phases) == sum(part.bytes for part in inside)


def test_the_gpu_peak_of_every_case_and_the_median():
    errors = _gpu_errors()
    assert len(errors) >= 60
    assert max(map(abs, errors)) < 0.05
    assert statistics.median(map(abs, errors)) < 0.01


WHOLE = json.loads((RESULTS / "whole-rows-h200.json").read_text())["rows"]


@pytest.mark.parametrize("row", WHOLE, ids=lambda row: row["command"].split(" FOLDER ")[1])
def test_whole_steps_of_half_a_million_tokens_and_more(row):
    """benchmarks/whole_rows_gpu.py: first steps of their processes, without Adam's two states."""
    asked, measured = row["row"], row["measured"]
    layers = find_model(asked["model"]).layers
    case = {**asked, "layers": layers, "card": row["machine"]["gpu"], "plan": row["plan"], "fused": row["fused"]}
    case["backend"] = row["backend"]
    ledger = _ledger(case)
    adam = 8 * _workload(case).lora_parameters
    assert _allocated(case) - adam == pytest.approx(measured["gpu_allocated"], rel=0.01)
    host = sum(part.bytes for part in ledger.parts if part.where == "host")
    assert host == pytest.approx(measured["host_process"], rel=0.01)
    assert _seconds(case) == pytest.approx(measured["seconds"], rel=0.05)


GEMMA = json.loads((RESULTS / "gemma-h200.json").read_text())["rows"]


@pytest.mark.parametrize("row", GEMMA, ids=lambda row: row["model"])
def test_a_step_whose_heads_have_two_sizes(row):
    """benchmarks/streaming_gpu.py: heads of 512, which one kernel serves, beside heads of 256 in windows.

    Memory is a test of the ledger; the rate of that kernel was fitted to these times.
    """
    spec = find_model(row["model"])
    planning = PlanRequest(
        machine=with_card("h200", ram=512), spec=spec, compute_type="bf16", weights=("nf4",), lora=LoraSection()
    )
    work = dataclasses.replace(workload_of(planning, row["context"]), table_home=row["table_home"])
    plan = StreamPlan(**row["plan"])
    ledger = streamed_ledger(work, plan)
    adam = 8 * work.lora_parameters
    allocated = max(bytes_ for _, bytes_ in ledger.phases) - adam
    assert allocated / row["gpu_peak_allocated"] == pytest.approx(1, abs=0.02)
    assert ledger.peak("host") / row["host_rss_bytes"] == pytest.approx(1, abs=0.04)
    seconds = sum(part.seconds for part in streamed_time(work, plan, speeds_of(planning.machine, work)))
    assert seconds / row["seconds"]["total"] == pytest.approx(1, abs=0.15)


EXPERTS = json.loads((RESULTS / "experts-h200.json").read_text())["rows"]


@pytest.fixture(scope="module")
def experts_counted():
    """The model of EXPERTS, as the modules that transformers builds of its published settings show it."""
    spec = find_model("qwen3-coder-30b-a3b")
    config = AutoConfig.for_model(
        "qwen3_moe",
        vocab_size=151_936,
        hidden_size=2048,
        intermediate_size=5472,
        moe_intermediate_size=768,
        num_hidden_layers=48,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
        num_experts=128,
        num_experts_per_tok=8,
        max_position_embeddings=262_144,
    )
    seen = as_spec(observed_shape(config, adapts_mlp=False), name=spec.name, family=spec.family)
    assert (seen.parameters, seen.quantised_parameters) == (spec.parameters, spec.quantised_parameters)
    return seen


@pytest.mark.parametrize("row", EXPERTS, ids=lambda row: row["name"])
@pytest.mark.parametrize("counted", [False, True], ids=["listed", "counted"])
def test_the_gpu_peak_of_experts_in_4_bits_from_the_host(row, counted, experts_counted):
    """benchmarks/experts_gpu.py: liger's kernel computes the norms of a family that has none of its others.

    So it does in families of which no list says what a layer holds; this one is planned as one of them, too.
    """
    planning = PlanRequest(
        machine=with_card("h200", ram=512),
        spec=experts_counted if counted else find_model(row["model"]),
        compute_type="bf16",
        weights=("nf4-streamed",),
        lora=LoraSection(targets=row["targets"]),
    )
    work = workload_of(planning, row["context"])
    assert work.served_norms
    assert not work.fused_kernels
    ledger = streamed_ledger(work, StreamPlan(**row["plan"]))
    # The benchmark has no optimiser, whose two states are fp32.
    peak = max(bytes_ for _, bytes_ in ledger.phases) - 8 * work.lora_parameters
    assert peak == pytest.approx(row["gpu_peak_allocated"], rel=0.01)


def _smallest(gpu, outside):
    """Bytes that torch's allocator may take on the smallest card for which the planner calls a peak fitting."""
    return round(gpu / (1 - HEADROOM)) - outside


def test_none_ran_out_on_the_smallest_card_that_was_called_large_enough():
    assert not [case for case in CASES if "error" in case or "error_under_limit" in case]
    for case in CASES:
        predicted = case["predicted"]
        assert case["limit"] <= _smallest(predicted["gpu"], predicted["gpu_outside_allocator"])


def test_what_was_reserved_is_within_what_is_called_large_enough_now():
    for case in CASES:
        ledger = _ledger(case)
        outside = next(part.bytes for part in ledger.parts if part.name == CONTEXT)
        assert case["gpu_peak_reserved"] <= _smallest(ledger.peak("gpu"), outside)


@pytest.mark.parametrize("phase", ["forward", "loss", "backward"])
def test_the_peak_of_each_phase(phase):
    """Within a twentieth: so the table names the phase that does set the peak."""
    errors = [
        (dict(_ledger(case).phases)[phase] - _absent(case, phase)) / case["gpu_peaks"][phase] - 1
        for case in CASES
        if phase in case["gpu_peaks"] and case["plan"]["checkpoint_every"] == 1
    ]
    assert max(map(abs, errors)) < 0.05
    assert statistics.median(map(abs, errors)) < 0.02


def _before(case):
    """Bytes of the process before a case."""
    before = max(case["host_rss"]["before"], 1.83 * GIB)  # a process grows by what CUDA loads in its first step
    # What a case before has freed is ordinary memory, which this one takes again or which has gone back by its end.
    return min(before, HOST_PROCESS) if case["full"] else before


def _saved_then(case):
    """Bytes of keys and values that were saved beside pages when these cases were measured, and never read."""
    plan = case["plan"] or {}
    if plan.get("kv_home") != "host" or not plan["stash"] or plan["hidden_home"] != "host":
        return 0
    work = _workload(case)
    saving = [kind for kind in work.spec.attentions if kind.saves_kv and case["context"] > plan["tile"]]
    return sum(kind.layers * kind.stored_width for kind in saving) * work.context * work.element


def test_host_memory():
    """What a case added to its process, beside what the process was before."""
    errors = []
    for case in CASES:
        parts = _ledger(case).parts
        absent = (STATE_TO_GO_BACK_TO, QUANTISING)  # their weights were drawn on the GPU
        held = sum(part.bytes for part in parts if part.where == "host" and part.name not in absent)
        held += _saved_then(case)
        errors.append((held - HOST_PROCESS + _before(case)) / case["host_rss"]["step"] - 1)
    assert max(map(abs, errors)) < 0.05
    assert statistics.median(map(abs, errors)) < 0.03


def _seconds(case):
    """The benchmark's step ends with the gradients."""
    work = _workload(case)
    speeds = speeds_of(CARDS[case["card"]], work)
    if case["plan"] is None:
        parts = whole_sequence_time(work, _weights(case), speeds, recompute=case["recompute"])
    else:
        parts = streamed_time(work, StreamPlan(**case["plan"]), speeds)
    return sum(part.seconds for part in parts if part.name != UPDATE)


def test_seconds():
    """Of steps after the first one; those to a disk went to the system's own memory and are left out."""
    warm = [case for case in CASES if case["repeats"] and (case["plan"] or {}).get("hidden_home") != "disk"]
    errors = [_seconds(case) / case["seconds"] - 1 for case in warm]
    errors += [
        _seconds(step) / step["seconds"]["total"] - 1 for step in STEPS if step["seconds"] != step["first_seconds"]
    ]
    assert max(map(abs, errors)) < 0.2
    assert statistics.median(map(abs, errors)) < 0.1
