"""Measures streamed steps on the GPU here, case by case, and prints a table.

    python benchmarks/streaming_gpu.py OUT.json CASE [CASE ...]

A case is a JSON object: {"model": ..., "context": ..., "layers": ..., "precision": "nf4", "cap": 7.25, "repeats": 2,
"plan": {StreamPlan fields}, "fused": true}. Each runs in a process of its own, so that no allocator state leaks.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))


def run(case: dict, pipe) -> None:
    import torch

    from engine.benchmarking import streaming
    from engine.errors import EliteError
    from engine.models.catalogue import find_model
    from engine.models.placement import choose_placement
    from engine.plan.stream_plan import StreamPlan, base_weights

    try:
        placement = choose_placement("cuda", case.get("precision", "bf16"))
        streamed = "streamed" in case.get("plan", {}).get("weights", "resident")
        weights = base_weights(four_bit=placement.precision == "nf4", streamed=streamed)
        plan = StreamPlan(**{**case.get("plan", {}), "weights": weights})
        result = streaming.measure_step(
            find_model(case["model"]),
            case["context"],
            plan,
            placement,
            layers=case.get("layers"),
            vram_cap=case.get("cap"),
            repeats=case.get("repeats", 2),
            fused=case.get("fused", True),
            spill_directory=Path("/tmp"),
        )
        if case.get("floor"):
            torch.cuda.empty_cache()
            result |= streaming.measure_floors(find_model(case["model"]), case["context"], result, placement)
    except EliteError as error:
        result = {"error": str(error), "case": case}
    except Exception:
        result = {"error": traceback.format_exc(limit=6), "case": case}
    pipe.send(result)


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
    if "attention_floor" in result:
        floor, matrix = result["attention_floor"], result["matrix_floor"]
        text += f"\n    attention floor {floor:.2f} s = {floor / s['total']:.3f} of the step; with matrices "
        text += f"{floor + matrix:.2f} s = {(floor + matrix) / s['total']:.3f}"
    return text


if __name__ == "__main__":
    main()
