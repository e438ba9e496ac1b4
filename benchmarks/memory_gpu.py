"""Measures what steps of many kinds take on the GPU here, for the ledger and the time model to be held against.

    python benchmarks/memory_gpu.py OUT.json [--model M ...] [--full] [--trace]

One process a model, random weights, a few layers each (every layer is the same work). A case runs a step and, warm, the
step that is measured, with Adam's states in place; a short one as often as makes half a second, of which the fastest
counts. torch's allocator may take no more than the smallest card has for which the planner calls the case fitting: one
that runs out shows a plan that "fits" and does not, and is run again without the limit. With --trace, cases marked for
it also tell which lines of code hold the memory at the peak.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.memory_cases import CASES, DEFAULTS, K
from benchmarks.memory_peaks import Peaks, clear, rss, trace_peak

if TYPE_CHECKING:
    from engine.models.fine_tuning import FineTuning


SHORT_SECONDS = 0.5
"""Of steps shorter than this, several are run: one alone may have waited for the host."""


# --- one case ----------------------------------------------------------------------------------------------


def measure(model_name: str, case: dict[str, Any], *, limit: int | None, trace: bool) -> dict[str, Any]:
    """Everything that one case shows, in bytes and seconds; `limit` is the most that the allocator may take."""
    import torch

    from engine.config import LoraSection
    from engine.models.adapter import attach_adapter
    from engine.models.catalogue import find_model
    from engine.models.fine_tuning import AdapterTuning, FullTuning
    from engine.models.fused import fuse_kernels
    from engine.models.placement import choose_placement
    from engine.models.random import random_model
    from engine.plan.stream_plan import StreamPlan

    spec, device = find_model(model_name), torch.device("cuda", 0)
    placement = choose_placement("cuda", case["precision"])
    plan = None
    if case["plan"] is not None:
        weights = case["plan"].get("weights") or ("nf4" if case["precision"] == "nf4" else "resident")
        plan = StreamPlan(**{**case["plan"], "weights": weights})
    clear(device)
    card = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(1.0 if limit is None else limit / card, device)
    host = {"before": rss()}
    streamed_weights = plan is not None and plan.streams_weights
    home = torch.device("cpu") if streamed_weights else device
    base = random_model(spec, placement, layers=case["layers"], weights_device=home)
    fused = case["fused"] and fuse_kernels(base, device)
    tuning: FineTuning
    if case["full"]:
        tuning = FullTuning(base, device if case["full"] == "gpu" else torch.device("cpu"))
    else:
        tuning = AdapterTuning(attach_adapter(base, LoraSection(rank=case["rank"]), seed=0))
    tuning.model.train()
    tokens = torch.randint(0, spec.vocab_size, (case["context"],), generator=torch.Generator().manual_seed(0))
    host["model"] = rss()
    gpu_model = torch.cuda.memory_allocated(device)

    with tempfile.TemporaryDirectory() as spill:
        way: Way = (
            Streamed(tuning, plan, tokens, device, Path(spill)) if plan else Whole(tuning, case, tokens, placement)
        )
        try:
            optimizer = with_states(tuning.weights.values())
            first, peaks = one_step(way, tuning, device)
            seconds, peaks_first = first, peaks
            warm: list[float] = []
            while len(warm) < case["repeats"] or (warm and sum(warm) < SHORT_SECONDS):
                again, peaks = one_step(way, tuning, device)
                warm.append(again)
                seconds = min(warm)
            host["step"] = rss()
            peak_lines = None
            if trace and case["trace"]:
                clear_gradients(tuning)
                peak_lines = trace_peak(lambda: way.run(Peaks(device)), device)
        finally:  # nothing may be left for the next case
            way.close()
            if tuning.masters is not None:
                tuning.masters.gradients.close()
    free, total = torch.cuda.mem_get_info(device)
    gib_reserved = torch.cuda.memory_reserved(device)
    del optimizer
    return {
        "model": model_name,
        **{key: value for key, value in case.items() if key != "plan"},
        "fused": fused,
        "plan": dataclasses.asdict(plan) if plan else None,
        "limit": limit,
        "backend": way.backend,
        "gpu_after_model": gpu_model,
        "gpu_peak_allocated": max(value[0] for value in peaks.taken.values()),
        "gpu_peak_reserved": max(value[1] for value in peaks.taken.values()),
        "gpu_peaks": {stage: value[0] for stage, value in peaks.taken.items()},
        "gpu_peaks_first": {stage: value[0] for stage, value in peaks_first.taken.items()},
        "gpu_outside_allocator": total - free - gib_reserved,
        "host_rss": host,
        "seconds": seconds,
        "first_seconds": first,
        "stages": way.stages,
        "peak_lines": peak_lines,
    }


def with_states(parameters: Iterable[Any]) -> Any:
    """AdamW with its two states in place, as in every step but the first."""
    import torch

    optimizer = torch.optim.AdamW(parameters, lr=0.0)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return optimizer


def clear_gradients(tuning: FineTuning) -> None:
    for parameter in tuning.weights.values():
        parameter.grad = None


def one_step(way: Way, tuning: FineTuning, device: Any) -> tuple[float, Peaks]:
    """Seconds and peaks of a step that starts without gradients."""
    import torch

    clear_gradients(tuning)
    peaks = Peaks(device)
    torch.cuda.synchronize(device)
    began = time.perf_counter()
    way.run(peaks)
    torch.cuda.synchronize(device)
    return time.perf_counter() - began, peaks


class Way:
    """How a step is computed."""

    backend = ""
    stages: dict[str, float] | None = None

    def run(self, peaks: Peaks) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass


class Streamed(Way):
    def __init__(self, tuning: FineTuning, plan: Any, tokens: Any, device: Any, spill: Path) -> None:
        from engine.streaming.step import StreamedStep

        gradients = None if tuning.masters is None else tuning.masters.gradients
        self._step = StreamedStep(tuning.model, plan, device=device, spill_directory=spill, wide_gradients=gradients)
        self._tokens = tokens

    def run(self, peaks: Peaks) -> None:
        outcome = self._step.run(self._tokens, progress=lambda progress: peaks.take(progress.stage))
        peaks.take("backward")  # what comes after the last report: an embedding's gradient
        self.stages, self.backend = outcome.seconds, self._step.backend_name

    def close(self) -> None:
        self._step.close()


class Whole(Way):
    def __init__(self, tuning: FineTuning, case: dict[str, Any], tokens: Any, placement: Any) -> None:
        import torch

        from engine.data.windows import Window
        from engine.steps.whole_step import WholeSequenceStep

        self._step = WholeSequenceStep(
            tuning.model,
            recompute=case["recompute"],
            autocast=lambda: torch.autocast("cuda", dtype=placement.dtype),
            gradients=None if tuning.masters is None else tuning.masters.gradients,
        )
        self._window = Window(tokens.numpy())

    def run(self, peaks: Peaks) -> None:
        self._step.run([self._window], 1.0 / (len(self._window) - 1), Silent())
        peaks.take("whole")


class Silent:
    """Neither tells nor asks."""

    def progress(self, *_: Any, **__: Any) -> None:
        pass

    def stop_requested(self) -> bool:
        return False


# --- all of them -------------------------------------------------------------------------------------------


def run_model(model: str, trace: bool, full: bool, pipe: Any) -> None:
    """All cases of one model, in this process; each result is sent as soon as it is there."""
    import torch

    from engine.benchmarking.machine import describe_machine
    from engine.hardware.inventory import take_inventory
    from engine.plan.search import HEADROOM

    device, machine = torch.device("cuda", 0), take_inventory(Path())
    torch.cuda.memory._set_allocator_settings("expandable_segments:True")  # as a training run does
    before = rss()
    free_before, _ = torch.cuda.mem_get_info(device)
    torch.zeros(1, device=device)
    torch.cuda.synchronize(device)
    free, total = torch.cuda.mem_get_info(device)
    pipe.send(
        {
            "machine": describe_machine(device),
            "rss_before_cuda": before,
            "rss_with_cuda": rss(),
            "gpu_used_at_start": total - free - torch.cuda.memory_reserved(device),
            "gpu_free_before": free_before,
        }
    )
    # Fused kernels replace functions of a whole family for good: cases without them come first.
    cases = [{**DEFAULTS, **given} for given in CASES[model]]
    cases = [case for case in cases if case["full"] or not full]
    for case in sorted(cases, key=lambda case: bool(case["fused"])):
        began = time.perf_counter()
        predicted = predict(machine, model, case)
        limit = round(predicted["gpu"] / (1 - HEADROOM)) - predicted["gpu_outside_allocator"]
        result = attempt(model, case, limit=limit, trace=trace)
        if "error" in result:
            under_limit = result["error"]
            result = {**attempt(model, case, limit=None, trace=trace), "error_under_limit": under_limit, "limit": limit}
        result["predicted"] = predicted
        result["wall"] = time.perf_counter() - began
        pipe.send(result)
    pipe.send(None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", action="append", choices=list(CASES))
    parser.add_argument("--full", action="store_true", help="Only cases that train every weight.")
    parser.add_argument("--trace", action="store_true")
    arguments = parser.parse_args()
    document: dict[str, Any] = {"machine": None, "processes": [], "cases": []}
    for model in arguments.model or CASES:
        receiver, sender = multiprocessing.Pipe(duplex=False)
        target = (model, arguments.trace, arguments.full, sender)
        process = multiprocessing.get_context("spawn").Process(target=run_model, args=target)
        process.start()
        sender.close()
        try:
            start = receiver.recv()
            document["machine"] = start.pop("machine")
            document["processes"].append({"model": model, **start})
            while (result := receiver.recv()) is not None:
                document["cases"].append(result)
                print(line(result), flush=True)
                arguments.out.write_text(json.dumps(document, indent=1), encoding="utf-8")
        except EOFError:
            print(f"the process for {model} died", flush=True)
        process.join()
    print(f"{len(document['cases'])} cases, {sum('error' in case for case in document['cases'])} failed")


def attempt(model: str, case: dict[str, Any], *, limit: int | None, trace: bool) -> dict[str, Any]:
    from engine.errors import EliteError

    try:
        return measure(model, case, limit=limit, trace=trace)
    except EliteError as error:
        return {"model": model, **case, "error": str(error)}
    except Exception:
        return {"model": model, **case, "error": traceback.format_exc(limit=8)}


def predict(machine: Any, model: str, case: dict[str, Any]) -> dict[str, Any]:
    """What the planner says of a case on this machine: bytes by place and phase, seconds by part."""
    from engine.config import LoraSection, TrainingSection
    from engine.models.catalogue import find_model
    from engine.plan.ledger_lines import CONTEXT
    from engine.plan.memory import streamed_ledger, whole_sequence_ledger
    from engine.plan.request import PlanRequest, workload_of
    from engine.plan.speeds import attention_efficiency, speeds_of
    from engine.plan.stream_plan import StreamPlan
    from engine.plan.time import streamed_time, whole_sequence_time

    spec = find_model(model).with_layers(case["layers"])
    planning = PlanRequest(
        machine=machine,
        spec=spec,
        compute_type="bf16",
        weights=("resident",),
        lora=LoraSection(rank=case["rank"]),
        training=TrainingSection(method="full" if case["full"] else "lora"),
    )
    work = dataclasses.replace(workload_of(planning, case["context"]), master_home=case["full"])
    if not case["fused"]:
        work = dataclasses.replace(work, fused_kernels=False, served_norms=False)
    four_bit = "nf4" if case["precision"] == "nf4" else "resident"
    if case["plan"] is None:
        ledger = whole_sequence_ledger(work, four_bit, recompute=case["recompute"])
        parts = whole_sequence_time(work, four_bit, speeds_of(machine, work), recompute=case["recompute"])
    else:
        plan = StreamPlan(**{"weights": four_bit, **case["plan"]})
        if plan.attention != "auto":
            efficiency = attention_efficiency(machine.gpus[0], spec.head_dim, plan.attention)
            work = dataclasses.replace(work, backend=plan.attention, attention_efficiency=efficiency)
        ledger = streamed_ledger(work, plan)
        parts = streamed_time(work, plan, speeds_of(machine, work))
    return {
        "gpu": ledger.peak("gpu"),
        "gpu_outside_allocator": next(part.bytes for part in ledger.parts if part.name == CONTEXT),
        "host": ledger.peak("host"),
        "phases": dict(ledger.phases),
        "parts": {part.name: part.bytes for part in ledger.parts if part.where == "gpu"},
        "seconds": {part.name: part.seconds for part in parts},
    }


def line(result: dict[str, Any]) -> str:
    plan = result["plan"]
    way = "whole" if plan is None else " ".join(f"{k}={v}" for k, v in plan.items())
    name = f"{result['model']} {result['context'] // K}K L{result['layers']} {result['precision']} {way}"
    if "error" in result:
        return f"{name}\n    ERROR {result['error']}"
    gib = 2**30
    grown = result["host_rss"]["step"] - result["host_rss"]["before"]
    peaks = ", ".join(f"{stage} {value / gib:.3f}" for stage, value in result["gpu_peaks"].items())
    said = result["predicted"]
    allocated = (said["gpu"] - said["gpu_outside_allocator"]) / gib
    name += "" if "error_under_limit" not in result else "\n    RAN OUT under what the ledger says"
    return (
        f"{name}\n    predicted {allocated:.3f} GiB and {sum(said['seconds'].values()):.2f} s; measured "
        f"{result['seconds']:.2f} s (first {result['first_seconds']:.2f}), {peaks} GiB, reserved "
        f"{result['gpu_peak_reserved'] / gib:.3f}, host +{grown / gib:.2f}"
        f", wall {result['wall']:.1f}"
    )


if __name__ == "__main__":
    main()
