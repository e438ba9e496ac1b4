"""Measures 4-bit weights that wait on the host or on the disk, on one GPU, with random weights of true shapes.

    python benchmarks/packed_gpu.py OUT.json [--only dense hybrid same front] [--tiny]

| case | what it shows | about |
|---|---|---|
| dense | Qwen3-32B, 32K tokens, LoRA on all linear layers, under 14.5 and 22.5 GiB; then text under 14.5 GiB | 90 s |
| hybrid | the same of Qwen3.6-27B (needs flash-linear-attention); its shapes are proven first | 150 s |
| same | one step of the 1.5B with weights resident, on the host and in files: loss, gradient, seconds | 30 s |
| front | `engine train` on a folder of bf16 shards: first start, and a second one with weights from the disk | 90 s |

Predictions are the planner's for a card of 16 or 24 GB and 48 GiB of RAM with this GPU's rates. Each case runs in its
own process and is written as it ends. `--tiny` runs all of it with tiny shapes on the CPU.

The shapes of Qwen3.6-27B: its model card, and scripts/models/qwen3.5-27B.sh of THUDM/slime (the two share them).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.packed_shards import write_shards
from benchmarks.packed_tables import table

CONTEXT = 32768
CARDS = ((16, 14.5), (24, 22.5))
"""GiB of each card, and what torch's allocator may take of it."""
RAM = 48
HYBRID = {
    "architectures": ["Qwen3_5ForCausalLM"],
    "model_type": "qwen3_5_text",
    "vocab_size": 248320,
    "hidden_size": 5120,
    "intermediate_size": 17408,
    "num_hidden_layers": 64,
    "num_attention_heads": 24,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 48,
    "linear_conv_kernel_dim": 4,
    "layer_types": ["full_attention" if number % 4 == 3 else "linear_attention" for number in range(64)],
    "tie_word_embeddings": False,
    "max_position_embeddings": 262144,
    "dtype": "bfloat16",
}
TINY = {"hidden_size": 128, "intermediate_size": 256, "layers": 3, "heads": 2, "kv_heads": 1, "head_dim": 64}
TINY |= {"vocab_size": 8192, "full_attention_layers": 3}


def placement_of(tiny: bool) -> Any:
    from engine.models.placement import choose_placement

    return choose_placement("cpu" if tiny else "cuda", "nf4")


def machine_of(card: float, tiny: bool) -> Any:
    """This machine with another amount of memory; for a dry run a simulated one."""
    from engine.hardware.cards import find_card, simulate
    from engine.hardware.inventory import take_inventory

    if tiny:
        machine = simulate(find_card("h200"), ram_bytes=RAM << 30, disk_bytes=10**12)
    else:
        machine = take_inventory(Path("/tmp"))
    gpu = dataclasses.replace(machine.gpus[0], memory_total=round(card * 2**30), memory_free=None)
    return dataclasses.replace(machine, gpus=(gpu,), ram_total=RAM << 30, ram_available=RAM << 30)


def planned(spec: Any, card: float, tiny: bool) -> tuple[Any, dict[str, Any]]:
    """The planner's layout with 4-bit weights from the host, and what it says of it."""
    from engine.config import StreamSection, TrainingSection
    from engine.plan.ledger_lines import NOT_ALLOCATED
    from engine.plan.planner import plan_context
    from engine.plan.request import PlanRequest

    context = 128 if tiny else CONTEXT
    request = PlanRequest.of(
        machine_of(card, tiny),
        spec,
        "nf4",
        training=TrainingSection(step="streamed"),
        stream=StreamSection(weights="streamed"),
    )
    row = plan_context(request, context)
    if not row.fits:
        raise SystemExit(f"{spec.name} does not fit {card} GiB: {row.reason}")
    gpu = [part for part in row.parts if part.where == "gpu" and part.name not in NOT_ALLOCATED]
    lora = next(part.bytes for part in row.parts if part.name.startswith("LoRA"))
    slack = sum(part.bytes for part in gpu if part.name == "allocator slack")
    said = {
        "gpu_allocated": sum(part.bytes for part in gpu) - slack - lora // 2,  # no Adam states here
        "host": row.host_peak_bytes,
        "seconds": row.step_seconds / row.windows_per_step,
        "moved_bytes": row.moved_bytes // row.windows_per_step,
        "time": {part.name: part.seconds for part in row.time},
        "parts": {part.name: part.bytes for part in row.parts},
    }
    return row.layout.stream, said


def build(spec: Any, config: Any, placement: Any) -> tuple[Any, float]:
    """A random model whose packed layers are on the host, with an adapter that is not zero."""
    import torch

    from engine.config import LoraSection
    from engine.models.adapter import attach_adapter, trainable
    from engine.models.fused import fuse_kernels
    from engine.models.loading import _keep_differentiable
    from engine.models.random import random_model, random_model_of

    torch.manual_seed(0)
    began, home = time.perf_counter(), torch.device("cpu")
    base = random_model(spec, placement, weights_device=home)
    if config is not None:
        base = random_model_of(config, placement, home)
        for name, parameter in base.named_parameters():
            if name.endswith(("A_log", "dt_bias")):
                parameter.data.copy_(torch.linspace(-2.0, 0.5, parameter.numel()))  # as trained models decay
    _keep_differentiable(base)  # on some CPUs bitsandbytes would pack weights for inference in place
    fuse_kernels(base, placement.device)
    model = attach_adapter(base, LoraSection(rank=16), seed=0).train()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in trainable(model).items():
        if "lora_B" in name:
            parameter.data = (0.01 * torch.randn(parameter.shape, generator=generator)).to(parameter)
    return model, time.perf_counter() - began


def link_rate(device: Any) -> float:
    """Bytes a second from pinned memory to the device."""
    import torch

    from engine.benchmarking.streaming import timed
    from engine.hardware.pinned_memory import pinned_empty

    source = pinned_empty((1 << (20 if device.type == "cpu" else 30),), torch.uint8)
    target = torch.empty_like(source, device=device)
    return source.numel() / timed(lambda: target.copy_(source, non_blocking=True), device)


def host_bytes() -> int:
    """Memory of the process without pages of files, which the system takes back as it needs."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return sum(int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssShmem"))


def steps(model: Any, plan: Any, device: Any, tokens: Any, repeats: int) -> dict[str, Any]:
    """Runs steps and returns the fastest, with the peaks, the loss and the gradient's norm."""
    import torch

    from engine.benchmarking.streaming import gradient_norm, reset_peak, synchronize
    from engine.streaming.step import StreamedStep

    runs = []
    with StreamedStep(model, plan, device=device, spill_directory=Path("/tmp")) as step:
        reset_peak(device)
        for _ in range(repeats):
            model.zero_grad(set_to_none=True)
            began = time.perf_counter()
            outcome = step.run(tokens)
            synchronize(device)
            runs.append({"total": time.perf_counter() - began, **outcome.seconds})
        found = {
            "plan": dataclasses.asdict(plan),
            "backend": step.backend_name,
            "seconds": min(runs, key=lambda run: run["total"]),
            "first_seconds": runs[0]["total"],
            "loss": outcome.loss_sum / outcome.predicted,
            "gradient_norm": gradient_norm(model),
            "host_bytes": host_bytes(),
        }
    if device.type == "cuda":
        found["gpu_peak_allocated"] = torch.cuda.max_memory_allocated(device)
        found["gpu_peak_reserved"] = torch.cuda.max_memory_reserved(device)
    return found


def floors(spec: Any, context: int, backend: str, packed: int, placement: Any) -> dict[str, float]:
    """Seconds of attention alone, of products alone, and of the packed bytes alone, three times over the link."""
    import torch

    from engine.attention.select import backend_by_name
    from engine.benchmarking.streaming import attention_floor, matrix_floor

    device, dtype = placement.device, placement.dtype
    kernel = backend_by_name(backend, device, dtype, spec.heads, spec.kv_heads, spec.head_dim)
    kinds = spec.kinds or ()
    products = matrix_floor(spec, context, device, dtype) * spec.layers
    if kinds:  # layers of several kinds: each with its own matrices
        products = 0.0
        for kind in kinds:
            linears: Any = SimpleNamespace(linears=kind.linears)
            products += matrix_floor(linears, context, device, dtype) * kind.layers
    rate = link_rate(device)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return {
        "attention": attention_floor(spec, context, kernel, device, dtype) * spec.attending_layers,
        "products": products,
        "link_bytes_a_second": rate,
        "bytes": 3 * packed / rate,
    }


def large(tiny: bool, spec: Any, config: Any = None) -> dict[str, Any]:
    """Steps under both cards, the floors, and text."""
    import torch

    from engine.benchmarking.machine import describe_machine
    from engine.benchmarking.streaming import limit_memory
    from engine.generation.forward import open_forward
    from engine.generation.sampling import Sampling, generate
    from engine.streaming.fetched_layers import fetched_layers

    placement = placement_of(tiny)
    device = placement.device
    before = host_bytes()
    model, built = build(spec, config, placement)
    context = 128 if tiny else CONTEXT
    tokens = torch.randint(0, spec.vocab_size, (context,), generator=torch.Generator().manual_seed(0))
    result: dict[str, Any] = {"model": spec.name, "context": context, "build_seconds": built, "rows": []}
    result["parameters"] = spec.parameters
    for card, cap in CARDS:
        plan, said = planned(spec, card, tiny)
        if result["rows"] and result["rows"][0]["plan"] == dataclasses.asdict(plan):
            result["rows"].append({**result["rows"][0], "card_gib": card, "cap_gib": cap, "as_before": True})
            continue  # the step of the smaller card is the best here too
        limit_memory(device, cap)
        row = {"card_gib": card, "cap_gib": cap, "predicted": said, **steps(model, plan, device, tokens, 2)}
        row["host_grown_bytes"] = row["host_bytes"] - before
        result["rows"].append(row)
    model.eval().requires_grad_(False)
    packed = said["moved_bytes"] if tiny else said["parts"]["decoder layers at home"]
    limit_memory(device, CARDS[0][1])
    with fetched_layers(model, device):
        count, prompt = (2, 20) if tiny else (8, 512)
        forward = open_forward(model, prompt + count + 2)
        made = generate(forward, tokens[:prompt].tolist(), Sampling(max_tokens=count + 1), frozenset())
        began = time.perf_counter()
        next(made)
        first = time.perf_counter() - began
        began = time.perf_counter()
        texted = len(list(made))
        seconds = (time.perf_counter() - began) / max(1, texted)
    result["text"] = {"cap_gib": CARDS[0][1], "prompt": prompt, "first_token": first, "token": seconds}
    del model, forward, made
    limit_memory(device, None)
    result["floors"] = floors(spec, context, result["rows"][0]["backend"], packed, placement)
    result["text"]["floor"] = packed / result["floors"]["link_bytes_a_second"]
    return result | {"packed_bytes": packed, "machine": describe_machine(device)}


def dense(tiny: bool) -> dict[str, Any]:
    from engine.models.catalogue import find_model

    spec = find_model("qwen3-32b")
    return large(tiny, dataclasses.replace(spec, **TINY) if tiny else spec)


def hybrid(tiny: bool) -> dict[str, Any]:
    from transformers import AutoConfig

    from engine.models.catalogue import find_model
    from engine.models.recurrent_kernels import prepare_kernels

    folder = Path("/tmp/qwen3.6-27b-shapes")
    folder.mkdir(exist_ok=True)
    shape = dict(HYBRID)
    if tiny:
        shape |= {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "vocab_size": 8192}
        shape |= {"num_attention_heads": 4, "head_dim": 64, "layer_types": HYBRID["layer_types"][:4]}
        shape |= {"linear_num_key_heads": 2, "linear_num_value_heads": 6, "num_key_value_heads": 2}
    (folder / "config.json").write_text(json.dumps(shape))
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "engine", "verify", "--model", str(folder)], check=True, cwd=ROOT)
    proof = time.perf_counter() - began
    shape.pop("architectures")
    config = AutoConfig.for_model(shape.pop("model_type"), **{**shape, "max_position_embeddings": 2**22})
    found = large(tiny, dataclasses.replace(find_model(str(folder)), name="qwen3.6-27b"), config)
    return found | {"proof_seconds": proof, "fla": prepare_kernels()}


def same(tiny: bool) -> dict[str, Any]:
    """The same packed blocks in three homes: the loss must be equal, the gradient but for the order of sums."""
    import torch

    from engine.benchmarking.machine import describe_machine
    from engine.models.catalogue import find_model
    from engine.models.layers import decoder_layers
    from engine.plan.stream_plan import StreamPlan

    placement, spec = placement_of(tiny), find_model("qwen2.5-coder-1.5b")
    spec = dataclasses.replace(spec, **TINY) if tiny else spec
    context = 128 if tiny else 16384
    tokens = torch.randint(0, spec.vocab_size, (context,), generator=torch.Generator().manual_seed(0))
    rows = []
    for name, options in (
        ("resident", {"weights": "nf4"}),
        ("resident again", {"weights": "nf4"}),
        ("host", {"weights": "nf4-streamed"}),
        ("files", {"weights": "nf4-streamed", "weights_home": "disk"}),
    ):
        model, _ = build(spec, None, placement)
        if options["weights"] == "nf4":
            model.to(placement.device)
        if "weights_home" in options:
            to_files(decoder_layers(model.get_base_model()))
        plan = StreamPlan(tile=64 if tiny else 4096, key_block=64 if tiny else 16384, **options)
        rows.append({"name": name, **steps(model, plan, placement.device, tokens, 3)})
        del model
    return {"model": spec.name, "context": context, "rows": rows, "machine": describe_machine(placement.device)}


def to_files(layers: list[Any]) -> None:
    """Moves what is offloaded of each layer into a file, and maps it, as a 4-bit folder is loaded."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    from engine.streaming.weights import _parts, travels

    folder = Path("/tmp/packed-files")
    folder.mkdir(exist_ok=True)
    for number, layer in enumerate(layers):
        parts = [part for p in layer.parameters() if travels(p) for part in _parts(p)]
        path = folder / f"{number}.safetensors"
        save_file({str(i): part.tensor.detach().clone().reshape(-1) for i, part in enumerate(parts)}, path)
        with safe_open(path, "pt") as file:
            for i, part in enumerate(parts):
                part.point_to(file.get_tensor(str(i)).view(part.tensor.shape))


def front(tiny: bool) -> dict[str, Any]:
    """Starts `engine train` twice on a folder of 16-bit shards that was never quantised before."""
    import shutil
    import tempfile

    from engine.benchmarking.machine import describe_machine
    from engine.models.catalogue import find_model

    scratch = Path(tempfile.mkdtemp(prefix="packed-"))
    spec = find_model("qwen2.5-coder-3b")
    write_shards(scratch / "model", dataclasses.replace(spec, **TINY) if tiny else spec, placement_of(tiny).device)
    bytes_16 = sum(file.stat().st_size for file in (scratch / "model").glob("*.safetensors"))
    environment = {**os.environ, "XDG_CACHE_HOME": str(scratch / "cache"), "PYTHONPATH": str(ROOT)}
    repository = scratch / "repository"
    shutil.copytree(ROOT / "engine" / "streaming", repository)
    rows = []
    for name, home in (("first start", "host"), ("second start", "disk")):
        words = [sys.executable, "-m", "engine", "train", "--json", "--repo", str(repository)]
        words += ["--model", str(scratch / "model"), "--output", str(scratch / "out"), "--max-steps", "2"]
        settings = {"model.precision": "nf4", "training.context": 256 if tiny else 8192, "evaluation.functions": 0}
        settings |= {"training.tokens_per_update": settings["training.context"], "evaluation.tokens": 8192}
        if not tiny:
            settings |= {"stream.weights": "streamed", "stream.weights_home": home}
        words += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        rows.append({"name": name, **timed_run(words, environment)})
    shutil.rmtree(scratch, ignore_errors=True)
    return {"bytes": bytes_16, "rows": rows, "machine": describe_machine(placement_of(tiny).device)}


def timed_run(words: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """Runs a training and returns when it loaded, when each update ended, and what it logged of the 4-bit copy."""
    began = time.time()
    done = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    found: dict[str, Any] = {"rc": done.returncode, "updates": [], "losses": [], "said": []}
    for line in done.stdout.splitlines():
        event = json.loads(line)
        at = event["time"] - began
        if event["kind"] == "StepCompleted":
            found["updates"].append(at)
            found["losses"].append(event["loss"])
        elif event["kind"] == "PhaseChanged":
            found.setdefault("phases", []).append([event.get("phase"), at])
        elif event["kind"] == "LogLine" and any(word in event["text"] for word in ("quantised", "4-bit", "parameters")):
            found["said"].append([at, event["text"]])
        elif event["kind"] in ("RunFinished", "RunFailed"):
            found["end"] = {key: event.get(key) for key in ("status", "gpu_peak", "host_peak", "hint")}
    found["wall"] = time.time() - began
    if done.returncode:
        found["stderr"] = done.stderr[-1500:]
    return found


CASES = {"dense": dense, "same": same, "front": front, "hybrid": hybrid}


def work(name: str, tiny: bool, pipe: Any) -> None:
    try:
        pipe.send(CASES[name](tiny))
    except BaseException as error:
        pipe.send({"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc(limit=12)})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    results: dict[str, Any] = {"command": f"python benchmarks/packed_gpu.py OUT.json --only {' '.join(args.only)}"}
    for name in args.only:
        began = time.perf_counter()
        receiver, sender = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("spawn").Process(target=work, args=(name, args.tiny, sender))
        process.start()
        sender.close()
        try:
            results[name] = receiver.recv()
        except EOFError:
            results[name] = {"error": "the process died"}
        process.join()
        results[name]["wall"] = time.perf_counter() - began
        args.out.write_text(json.dumps(results, indent=1))
    print(table(results, CASES))


if __name__ == "__main__":
    main()
