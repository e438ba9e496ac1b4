"""Measures streamed steps on the GPU here, case by case, and prints a table.

    python benchmarks/streaming_gpu.py OUT.json CASE [CASE ...]

A case is a JSON object: {"model": ..., "context": ..., "layers": ..., "precision": "nf4", "cap": 7.25, "repeats": 2,
"plan": {StreamPlan fields}, "fused": true}. Each runs in a process of its own, so that no allocator state leaks.

"shape" replaces fields of the model's ModelSpec. With "card": 8 and "ram": 48 (GiB) instead of a plan's fields, the
planner chooses for a card of that size with this GPU's rates; the plan's "weights" may still be given. The result says
what the planner predicts beside what was measured. 4-bit weights from the host, for cards of 8 and 16 GB:

    python benchmarks/streaming_gpu.py OUT.json \\
        '{"model": "qwen2.5-coder-7b", "context": 32768, "precision": "nf4", "cap": 7.25, "card": 8, "ram": 48,
          "plan": {"weights": "streamed"}}' \\
        '{"model": "qwen2.5-coder-14b", "shape": {"name": "32b", "layers": 64, "intermediate_size": 27648},
          "context": 32768, "precision": "nf4", "cap": 14.5, "card": 16, "ram": 48, "plan": {"weights": "streamed"}}'
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import sys
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))


def run(case: dict, pipe) -> None:
    import torch

    from engine.benchmarking import streaming
    from engine.config import LoraSection
    from engine.errors import EliteError
    from engine.hardware.tuning import tune_memory
    from engine.models.catalogue import find_model
    from engine.models.placement import choose_placement
    from engine.plan.stream_plan import StreamPlan, base_weights

    try:
        placement = choose_placement("cuda", case.get("precision", "bf16"))
        tune_memory(placement.device)  # as a training run does
        spec = dataclasses.replace(find_model(case["model"]), **case.get("shape", {}))
        fields = dict(case.get("plan", {}))
        machine = machine_of(case)
        if "card" in case:
            layout = chosen(machine, spec, case)
            plan, table_on_host = layout.stream, layout.table_home == "host"
        else:
            streamed = "streamed" in fields.get("weights", "resident")
            weights = base_weights(four_bit=placement.precision == "nf4", streamed=streamed)
            plan, table_on_host = StreamPlan(**{**fields, "weights": weights}), False
        predicted = predict(machine, spec, plan, case, table_on_host=table_on_host)
        result = streaming.measure_step(
            spec,
            case["context"],
            plan,
            placement,
            layers=case.get("layers"),
            vram_cap=case.get("cap"),
            repeats=case.get("repeats", 2),
            fused=case.get("fused", True),
            spill_directory=Path("/tmp"),
            lora=LoraSection(**case.get("lora", {})),
            table_on_host=table_on_host,
        )
        result["predicted"] = predicted
        if case.get("floor"):
            torch.cuda.empty_cache()
            result |= streaming.measure_floors(spec, case["context"], result, placement)
    except EliteError as error:
        result = {"error": str(error), "case": case}
    except Exception:
        result = {"error": traceback.format_exc(limit=6), "case": case}
    pipe.send(result)


def machine_of(case: dict) -> Any:
    """This machine, with a GPU of case["card"] GiB and case["ram"] GiB of RAM where they are given."""
    from engine.hardware.inventory import take_inventory

    machine = take_inventory(Path("/tmp"))
    if "card" in case:
        gpu = dataclasses.replace(machine.gpus[0], memory_total=round(case["card"] * 2**30), memory_free=None)
        machine = dataclasses.replace(machine, gpus=(gpu,))
    if "ram" in case:
        ram = round(case["ram"] * 2**30)
        machine = dataclasses.replace(machine, ram_total=ram, ram_available=ram)
    return machine


def request(machine: Any, spec: Any, case: dict) -> Any:
    from engine.config import LoraSection, StreamSection, TrainingSection
    from engine.plan.request import PlanRequest

    return PlanRequest.of(
        machine,
        spec,
        case.get("precision", "bf16"),
        lora=LoraSection(**case.get("lora", {})),
        training=TrainingSection(step="streamed"),
        stream=StreamSection(**case.get("plan", {})) if "card" in case else StreamSection(),
    )


def chosen(machine: Any, spec: Any, case: dict) -> Any:
    """The layout that the planner chooses for the card."""
    from engine.plan.planner import plan_context

    row = plan_context(request(machine, spec, case), case["context"])
    if not row.fits:
        raise SystemExit(f"does not fit: {row.reason}")
    return row.layout


def predict(machine: Any, spec: Any, plan: Any, case: dict, *, table_on_host: bool) -> dict[str, Any]:
    """What the planner says: bytes of the allocator's peak without Adam's states, of the host, and seconds."""
    from engine.plan.ledger_lines import NOT_ALLOCATED
    from engine.plan.memory import streamed_ledger
    from engine.plan.request import workload_of
    from engine.plan.speeds import speeds_of
    from engine.plan.time import streamed_time

    spec = spec.with_layers(case["layers"]) if case.get("layers") else spec
    work = workload_of(request(machine, spec, case), case["context"])
    work = dataclasses.replace(work, table_home="host" if table_on_host else "gpu")
    if not case.get("fused", True):
        work = dataclasses.replace(work, fused_kernels=False, served_norms=False)
    ledger = streamed_ledger(work, plan)
    parts = [part for part in ledger.parts if part.where == "gpu" and part.name not in NOT_ALLOCATED]
    slack = sum(part.bytes for part in parts if part.name == "allocator slack")
    return {
        "gpu_allocated": sum(part.bytes for part in parts) - slack - 8 * work.lora_parameters,
        "host": ledger.peak("host"),
        "seconds": sum(part.seconds for part in streamed_time(work, plan, speeds_of(machine, work))),
        "time": {part.name: part.seconds for part in streamed_time(work, plan, speeds_of(machine, work))},
        "parts": {part.name: part.bytes for part in ledger.parts},
    }


def main() -> None:
    out, cases = Path(sys.argv[1]), [json.loads(text) for text in sys.argv[2:]]
    results = []
    for case in cases:
        began = time.perf_counter()
        receiver, sender = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("spawn").Process(target=run, args=(case, sender))
        process.start()
        sender.close()
        try:
            result = receiver.recv()
        except EOFError:
            result = {"error": "the process died", "case": case}
        process.join()
        result["wall"] = time.perf_counter() - began
        results.append(result)
        print(line(case, result), flush=True)
        out.write_text(json.dumps(results, indent=1))


def line(case: dict, result: dict) -> str:
    name = f"{case['model']} {case['context'] // 1024}K L{case.get('layers', 'all')} {case.get('precision', 'bf16')}"
    name += f" cap {case.get('cap')} {case.get('plan', {})} fused {case.get('fused', True)}"
    if "error" in result:
        return f"{name}\n    ERROR {result['error']}"
    s, first = result["seconds"], result["first_seconds"]
    text = f"{name}\n    {s['total']:.2f} s (fwd {s['forward']:.2f} loss {s['loss']:.2f} bwd {s['backward']:.2f}; "
    text += f"first {first['total']:.2f})  peak {result['gpu_peak_allocated'] / 2**30:.2f} GiB allocated "
    text += f"{result['gpu_peak_reserved'] / 2**30:.2f} reserved, host {result['host_rss_bytes'] / 2**30:.1f} GiB, "
    text += f"{result['backend']}, loss {result['loss']:.4f}, wall {result['wall']:.0f}"
    said = result["predicted"]
    text += f"\n    predicted {said['seconds']:.2f} s ({said['seconds'] / s['total'] - 1:+.1%}), "
    text += f"{said['gpu_allocated'] / 2**30:.2f} GiB allocated "
    text += f"({said['gpu_allocated'] / result['gpu_peak_allocated'] - 1:+.1%}), host {said['host'] / 2**30:.1f} GiB; "
    text += f"built in {result['build_seconds']:.0f} s, plan {result['plan']}"
    if "attention_floor" in result:
        floor, matrix = result["attention_floor"], result["matrix_floor"]
        text += f"\n    attention floor {floor:.2f} s = {floor / s['total']:.3f} of the step; with matrices "
        text += f"{floor + matrix:.2f} s = {(floor + matrix) / s['total']:.3f}"
    return text


if __name__ == "__main__":
    main()
