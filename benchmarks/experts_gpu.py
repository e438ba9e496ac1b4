"""Measures streamed steps of a model with experts on one GPU: random weights of true shapes, in 4 bits on the host.

    python benchmarks/experts_gpu.py OUT.json [--only NAME ...] [--tiny]

Every case has a process of its own, in which the model is drawn and quantised expert by expert: what an earlier case
left on the GPU would count as its own. Each case states the limit of GPU memory
(torch's allocator refuses more), the card and the RAM that the planner chooses a layout for, and the adapter's targets.
Beside a step stand what the planner said of it, and its floor: attention alone, the layers' products alone, and the
bytes of three passes over the weights by the measured link. First the products of experts are compared: torch's grouped
kernel, one product an expert, and the bytes that the adapter's shortcut saves.

Qwen3-Coder-30B-A3B takes about 320 s on an H200: 15 s a case to build, 30 s one of 32K tokens, 90 s one of 128K.
`--tiny` runs the same on a CPU within seconds, to try the script.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

MODEL = "qwen3-coder-30b-a3b"
BOTH = {"targets": ["all-linear", "experts"]}
HOST = 48
CASES: dict[str, dict[str, Any]] = {
    "32k-16gb-experts": {"context": 32768, "cap": 14.5, "card": 16, "lora": BOTH, "repeats": 2},
    "32k-16gb-attention": {"context": 32768, "cap": 14.5, "card": 16, "repeats": 2},
    "128k-16gb-experts": {"context": 131072, "cap": 14.5, "card": 16, "lora": BOTH, "repeats": 1},
    "128k-16gb-attention": {"context": 131072, "cap": 14.5, "card": 16, "repeats": 1},
    "128k-24gb-attention": {"context": 131072, "cap": 22.5, "card": 24, "repeats": 1},
}
TINY = {
    "layers": 2,
    "sparse_layers": 2,
    "full_attention_layers": 2,
    "hidden_size": 128,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 32,
    "vocab_size": 256,
    "experts": 8,
    "experts_per_token": 2,
    "expert_size": 64,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()

    found: dict[str, Any] = {
        "command": " ".join(["python benchmarks/experts_gpu.py OUT.json", *sys.argv[2:]]),
        **in_own_process(kernels, args.tiny),
        "rows": [],
    }
    print(json.dumps({"link": found["link"], "products": found["products"]}), flush=True)
    for name in args.only:
        began = time.perf_counter()
        case = {"model": MODEL, "precision": "nf4", "ram": HOST, **CASES[name]}
        if args.tiny:
            case |= {"context": 300}
        row = in_own_process(built_and_measured, args.tiny, case, found["link"])
        found["rows"].append({"name": name, "case": case, **row, "wall": time.perf_counter() - began})
        print(f"{name}: {found['rows'][-1]['wall']:.0f} s {row.get('error', '')}", flush=True)
        args.out.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))


def in_own_process(function: Callable[..., dict], *values: Any) -> dict[str, Any]:
    """What `function` returns in a process of its own, or its error."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=answer, args=(sender, function, values))
    process.start()
    sender.close()
    try:
        found: dict[str, Any] = receiver.recv()
    except EOFError:
        process.join()
        found = {"error": f"the process ended with {process.exitcode}"}
    process.join()
    return found


def answer(sender: Any, function: Callable[..., dict], values: tuple) -> None:
    try:
        sender.send(function(*values))
    except Exception:
        sender.send({"error": traceback.format_exc(limit=8)})


def kernels(tiny: bool) -> dict[str, Any]:
    """The machine, its link, and the products of one layer's experts."""
    from engine.benchmarking.machine import describe_machine

    spec, placement = shapes_and_placement(tiny)
    return {
        **describe_machine(placement.device),
        "model": spec.name,
        "link": link(placement.device, tiny),
        "products": products(spec, placement, 64 if tiny else 16384),
    }


def built_and_measured(tiny: bool, case: dict, link: float) -> dict[str, Any]:
    """Builds the model, and measures one case of it."""
    import torch

    from engine.benchmarking.streaming import synchronize
    from engine.models.random import random_model

    spec, placement = shapes_and_placement(tiny)
    began = time.perf_counter()
    base = random_model(spec, placement, weights_device=torch.device("cpu"))
    synchronize(placement.device)
    built = {"model_build_seconds": time.perf_counter() - began, "host_after_build": resident()}
    return measured(case, spec, placement, base, link) | built


def shapes_and_placement(tiny: bool) -> tuple[Any, Any]:
    from engine.models.catalogue import find_model
    from engine.models.placement import choose_placement

    spec = find_model(MODEL)
    if tiny:
        spec = dataclasses.replace(spec, **TINY)
    return spec, choose_placement("cpu" if tiny else "cuda", "nf4")


def measured(case: dict, spec: Any, placement: Any, base: Any, link: float) -> dict[str, Any]:
    """One case: the layout that the planner chooses, what it says, what was measured, and the floor."""
    import torch

    from benchmarks import streaming_gpu
    from engine.benchmarking import streaming
    from engine.config import LoraSection
    from engine.plan.request import workload_of
    from engine.plan.weight_lines import stored_bytes

    tiny = placement.device.type == "cpu"
    machine = simulated(case) if tiny else streaming_gpu.machine_of(case)
    case = {**case, "plan": {"weights": "streamed"}}
    layout = streaming_gpu.chosen(machine, spec, case)
    plan, table_on_host = layout.stream, layout.table_home == "host"
    if tiny:
        plan = dataclasses.replace(plan, tile=64, key_block=128)
    said = streaming_gpu.predict(machine, spec, plan, case, table_on_host=table_on_host)
    lora, before = LoraSection(**case.get("lora", {})), resident()
    row = streaming.measure_step(
        spec,
        case["context"],
        plan,
        placement,
        vram_cap=case["cap"],
        repeats=case["repeats"],
        lora=lora,
        base=base,
        spill_directory=Path("/tmp"),
        table_on_host=table_on_host,
    )
    row |= {"predicted": said, "host_resident": before + row["host_rss_bytes"]}
    if placement.device.type == "cuda":
        torch.cuda.empty_cache()
    work = workload_of(streaming_gpu.request(machine, spec, case), case["context"])
    passes = 3 + (1 - 1 / plan.checkpoint_every)
    row["moved_bytes"] = round(passes * stored_bytes(work, plan.weights)) if plan.streams_weights else 0
    floors = {} if tiny else streaming.measure_floors(spec, case["context"], row, placement)
    return row | floors | {"weights_floor": row["moved_bytes"] / link}


def simulated(case: dict) -> Any:
    """An H200 of the card's memory, where there is no GPU."""
    from engine.hardware.target import target_machine

    machine = target_machine("h200")
    gpu = dataclasses.replace(machine.gpus[0], memory_total=round(case["card"] * 2**30), memory_free=None)
    ram = round(case["ram"] * 2**30)
    return dataclasses.replace(machine, gpus=(gpu,), ram_total=ram, ram_available=ram)


def resident() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def link(device: Any, tiny: bool) -> float:
    """Bytes a second from pinned host memory to the GPU."""
    import torch

    from engine.benchmarking.streaming import timed
    from engine.hardware.pinned_memory import pinned_empty

    size = 2**20 if tiny else 2**29
    host, there = pinned_empty((size,), torch.uint8), torch.empty(size, dtype=torch.uint8, device=device)
    return size / timed(lambda: there.copy_(host, non_blocking=True), device)


def products(spec: Any, placement: Any, tokens: int) -> dict[str, Any]:
    """One layer's experts on a tile: seconds of their products, and how far bf16 is from fp32."""
    import torch

    from engine.benchmarking.streaming import timed
    from engine.models import grouped_products
    from engine.models.expert_stacks import quantised_stack
    from engine.models.grouped_products import Groups, grouped_outer, grouped_product

    device, dtype = placement.device, placement.dtype
    rows, experts = tokens * spec.experts_per_token, spec.experts
    generator = torch.Generator(device).manual_seed(0)
    chosen = torch.rand((tokens, experts), device=device, generator=generator).topk(spec.experts_per_token).indices
    by_row = chosen.flatten().sort().values
    groups = Groups(torch.searchsorted(by_row, torch.arange(experts, device=device), right=True).to(torch.int32))
    x = torch.randn((rows, spec.hidden_size), dtype=dtype, device=device, generator=generator)
    shape = experts, 2 * spec.expert_size, spec.hidden_size
    w = torch.randn(shape, dtype=dtype, device=device, generator=generator) * 0.02
    try:
        y = grouped_product(x, w.transpose(1, 2), groups)
        grouped_outer(x[:, :16].contiguous(), grouped_product(x, w[:, :16].transpose(1, 2), groups), groups)
    except RuntimeError as error:  # measured all the same, one product an expert
        print(f"no grouped kernel: {error}", flush=True)
        grouped_products._in_one_kernel = lambda *_: False
        y = grouped_product(x, w.transpose(1, 2), groups)
    inner = torch.randn((rows, 16), dtype=dtype, device=device, generator=generator)
    found: dict[str, Any] = {
        "one_kernel": grouped_products._in_one_kernel(x, *shape[1:]),
        "rows": rows,
        "flops": 2 * rows * spec.hidden_size * 2 * spec.expert_size,
        "grouped": timed(lambda: grouped_product(x, w.transpose(1, 2), groups), device),
        "grouped_backward": timed(lambda: grouped_product(y, w, groups), device),
        "grouped_outer_of_16": timed(lambda: grouped_outer(inner, x, groups), device),
    }
    outer = grouped_outer(inner, x, groups)
    some = slice(0, groups.ends.tolist()[2])
    few = Groups(groups.ends[:3])
    exact = x[some].float(), w[:3].float(), inner[some].float()
    in_one, grouped_products._in_one_kernel = grouped_products._in_one_kernel, lambda *_: False
    try:
        found["one_by_one"] = timed(lambda: grouped_product(x, w.transpose(1, 2), groups), device)
        wanted = grouped_product(exact[0], exact[1].transpose(1, 2), few)
        of_outer = grouped_outer(exact[2], exact[0], few)
    finally:
        grouped_products._in_one_kernel = in_one
    found["error"] = float((y[some].float() - wanted).norm() / wanted.norm())
    found["outer_error"] = float((outer[:3].float() - of_outer).norm() / of_outer.norm())
    empty = Groups(torch.tensor([0, 5, 5, 9], dtype=torch.int32, device=device))
    found["empty_group"] = float(grouped_outer(inner[:9], x[:9], empty)[[0, 2]].abs().max())
    stack = quantised_stack(iter(w), shape, dtype)
    from bitsandbytes.functional import dequantize_4bit

    found["dequantise"] = timed(lambda: dequantize_4bit(stack.data, stack.quant_state), device)
    return found


def table(found: dict) -> str:
    lines = [f"{'case':22} {'step s':>7} {'said':>7} {'floor':>7} {'tok/s':>7} {'GiB':>6} {'said':>6} {'host':>5} said"]
    for row in found["rows"]:
        if "error" in row:
            lines.append(f"{row['name']:22} failed: {row['error'].splitlines()[-1]}")
            continue
        said, seconds = row["predicted"], row["seconds"]["total"]
        floor = sum(row.get(name, 0.0) for name in ("attention_floor", "matrix_floor", "weights_floor"))
        lines.append(
            f"{row['name']:22} {seconds:7.2f} {said['seconds']:7.2f} {floor:7.2f} {row['context'] / seconds:7.0f} "
            f"{row.get('gpu_peak_allocated', 0) / 2**30:6.2f} {said['gpu_allocated'] / 2**30:6.2f} "
            f"{row['host_resident'] / 2**30:5.1f} {said['host'] / 2**30:5.1f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
