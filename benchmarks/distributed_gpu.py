"""Measures what several GPUs of one machine do: exactness over NCCL, the ring's speed-up, ZeRO-3, PowerSGD.

    python benchmarks/distributed_gpu.py OUT.json [--gpus 2] [--minutes 9.5] [--only GROUP ...]
    python benchmarks/distributed_gpu.py OUT.json --device cpu           the same cases, small, over gloo

Groups: `ranks` (all that takes several ranks in one launch), `alone` (the ring's contexts on one GPU, side by side on
different cards), `zero` (ZeRO-3; needs DeepSpeed). Random weights. Every group has a time limit, and each case is
written as soon as it is there: one that fails or hangs costs only itself and what follows it in its group.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
K = 1024


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is measured on a kind of device."""

    model: str
    contexts: tuple[tuple[int, int], ...]
    "Context and decoder layers of each ring case."
    other_orders: tuple[int, int]
    "Of the contiguous ring and Ulysses."
    zero_model: str
    zero_layers: int | None
    zero_context: int
    sum_model: str
    message: int
    "Bytes of the link test."


SIZES = {
    "cuda": Sizes(
        "qwen2.5-coder-1.5b",
        ((256 * K, 28), (512 * K, 14)),
        (256 * K, 7),
        "qwen2.5-coder-7b",
        None,
        4 * K,
        "qwen2.5-coder-1.5b",
        1 << 28,
    ),
    "cpu": Sizes("demo", ((1 * K, 2), (2 * K, 2)), (1 * K, 2), "demo", 2, 256, "demo", 1 << 20),
}


# --- in a rank -----------------------------------------------------------------------------------------------


class Record:
    """Results of one launch, written after every case by rank 0."""

    def __init__(self, path: Path, leads: bool) -> None:
        self._path, self._leads, self._rows = path, leads, []

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if self._leads:
            self._path.write_text(json.dumps(self._rows))
            print("   ", json.dumps({k: v for k, v in row.items() if k != "plan"})[:400], flush=True)


@contextlib.contextmanager
def case(record: Record, name: str, team: Any) -> Iterator[dict[str, Any]]:
    """A row that is recorded with its error, if there is one; memory is given back."""
    import torch

    row: dict[str, Any] = {"case": name, "ranks": team.size}
    if team.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    try:
        yield row
    except Exception:
        row["error"] = traceback.format_exc(limit=8)
        print(row["error"], file=sys.stderr, flush=True)
    row["took"] = time.perf_counter() - began
    record.add(row)
    gc.collect()
    if team.device.type == "cuda":
        torch.cuda.empty_cache()
    if team.size > 1:  # a rank whose case failed alone must not leave the others in it
        failed = team.total([float("error" in row)])[0]
        if failed and "error" not in row:
            row["error"] = "another rank failed"


def rank_main(args: argparse.Namespace) -> int:
    """One rank, or the only one."""
    from engine.distributed.rank import join, prepare_environment

    if "RANK" not in os.environ:
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        os.environ.setdefault("MASTER_PORT", "29531")
    prepare_environment()
    import torch

    team = join(120.0, on_cpu=args.device == "cpu")
    record = Record(Path(args.part), team.leads)
    sizes = SIZES[args.device]
    if args.device == "cpu":
        torch.set_num_threads(1)
    {"ranks": ranks_group, "alone": alone_group, "zero": zero_group}[args.group](args, sizes, team, record)
    sys.stdout.flush()
    os._exit(0)


def ranks_group(_: argparse.Namespace, sizes: Sizes, team: Any, record: Record) -> None:
    parity(team, record)
    link(sizes, team, record)
    for context, layers in sizes.contexts:
        ring(sizes, team, record, context, layers, "ring", "zigzag")
    context, layers = sizes.other_orders
    for strategy, order in (("ring", "zigzag"), ("ring", "contiguous"), ("ulysses", "contiguous")):
        ring(sizes, team, record, context, layers, strategy, order)
    gradient_sums(sizes, team, record)


def alone_group(args: argparse.Namespace, sizes: Sizes, team: Any, record: Record) -> None:
    context, layers = sizes.contexts[args.number]
    ring(sizes, team, record, context, layers, "alone", "")
    if args.number == 0:
        ring(sizes, team, record, *sizes.other_orders, "alone", "")


# --- exactness -----------------------------------------------------------------------------------------------


def parity(team: Any, record: Record) -> None:
    """Loss and gradients of several ranks against the same computed by each alone, fp32."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    from engine.config import LoraSection
    from engine.distributed.data_parallel import WholeSum
    from engine.distributed.sequence_step import SequenceStep
    from engine.models.adapter import attach_adapter, trainable
    from engine.plan.stream_plan import StreamPlan
    from engine.streaming.step import StreamedStep

    device = team.device
    torch.backends.cuda.matmul.allow_tf32 = False
    heads = 4 if 4 % team.size == 0 else team.size
    config = Qwen2Config(
        vocab_size=512,
        hidden_size=64 * heads,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=4096,
    )
    plan = StreamPlan(
        tile=256, key_block=512, loss_piece=256, attention="efficient" if device.type == "cuda" else "cpu"
    )
    tokens = torch.randint(0, 512, (2047,), generator=torch.Generator().manual_seed(3))
    starts = (0, 300, 301, 1500)

    def model() -> Any:
        torch.manual_seed(0)
        made = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").to(device)
        made.config.use_cache = False
        made = attach_adapter(made.requires_grad_(False), LoraSection(rank=8), seed=0)
        drawn = torch.Generator().manual_seed(1)
        for parameter in trainable(made).values():
            parameter.data = (torch.randn(parameter.shape, generator=drawn) * 0.05).to(device)
        return made

    alone = model()
    with StreamedStep(alone, plan, device=device) as step:
        expected = step.run(tokens, document_starts=starts)
    for strategy, order in (("ring", "zigzag"), ("ring", "contiguous"), ("ulysses", "contiguous")):
        for stash in (True, False):
            with case(record, f"parity {strategy} {order} stash={stash}", team) as row:
                shared = model()
                used = dataclasses.replace(plan, stash=stash)
                with SequenceStep(shared, used, device=device, team=team, strategy=strategy, order=order) as step:
                    found = step.run(tokens, document_starts=starts, scale=1.0 / expected.predicted)
                gradients = [p.grad for p in trainable(shared).values()]
                WholeSum(team)(gradients)
                row["loss_error"] = abs(found.loss_sum / expected.loss_sum - 1)
                wanted = [p.grad for p in trainable(alone).values()]
                row["gradient_error"] = max(
                    float((a - b).norm() / b.norm()) for a, b in zip(gradients, wanted, strict=True)
                )
                limit = 1e-5 if device.type == "cpu" else 1e-4
                row["ok"] = max(row["loss_error"], row["gradient_error"]) < limit


# --- the link ------------------------------------------------------------------------------------------------


def link(sizes: Sizes, team: Any, record: Record) -> None:
    """Bytes a second round the ring, each way at once, and of an all-reduce."""
    import torch

    from engine.distributed.ring import Transfer

    with case(record, "link", team) as row:
        mine = torch.ones(sizes.message // 4, device=team.device)
        theirs = torch.empty_like(mine)

        def send() -> None:
            transfer = Transfer(team)
            transfer.start([(mine, theirs)])
            transfer.finish()

        row["send_receive_bytes_a_second"] = sizes.message / timed(send, team.device)
        row["all_reduce_bytes_a_second"] = sizes.message / timed(lambda: team.sum_tensor(theirs), team.device)


def timed(work: Any, device: Any, repeats: int = 5) -> float:
    """Seconds of one call, the fastest of some."""
    work()
    found = []
    for _ in range(repeats):
        synchronize(device)
        began = time.perf_counter()
        work()
        synchronize(device)
        found.append(time.perf_counter() - began)
    return min(found)


def synchronize(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


# --- long windows --------------------------------------------------------------------------------------------


def planned(sizes: Sizes, team: Any, context: int, layers: int, strategy: str) -> Any:
    """The planner's row for a rank, of a model with so many layers."""
    import torch

    from engine.hardware.inventory import take_inventory
    from engine.models.catalogue import find_model
    from engine.plan.cluster import share_of
    from engine.plan.planner import plan_context
    from engine.plan.planning import Planning, storage, without_gpu

    spec = dataclasses.replace(find_model(sizes.model), layers=layers)
    machine = take_inventory(Path("/tmp"))
    if team.device.type == "cpu":
        machine = without_gpu(machine)
    elif team.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info()
        first = dataclasses.replace(machine.gpus[0], memory_free=free)
        machine = dataclasses.replace(machine, gpus=(first,))
    compute_type, weights = storage(machine, "bf16" if team.device.type == "cuda" else "fp32")
    planning = Planning(
        machine=share_of(machine, team.size),
        spec=spec,
        compute_type=compute_type,
        weights=tuple(w for w in weights if w == "resident"),
        lora_rank=16,
        way="streamed",
        tokens_per_update=context,
        ranks=team.size,
        strategy=strategy,
        rank_link=200e9,
    )
    return spec, plan_context(planning, context)


def ring(sizes: Sizes, team: Any, record: Record, context: int, layers: int, strategy: str, order: str) -> None:
    """One exact step of one window by all ranks, in the planner's layout."""
    import torch

    from engine.config import LoraSection
    from engine.distributed.data_parallel import WholeSum
    from engine.distributed.sequence_step import SequenceStep
    from engine.models.adapter import attach_adapter, trainable
    from engine.models.fused import fuse_kernels
    from engine.models.placement import choose_placement
    from engine.models.random import random_model
    from engine.streaming.step import StreamedStep

    name = f"{strategy} {order}".strip()
    with case(record, name, team) as row:
        spec, plan_row = planned(sizes, team, context, layers, "auto" if team.size == 1 else strategy)
        plan = plan_row.stream
        row |= {"context": context, "layers": layers, "plan": dataclasses.asdict(plan)}
        placement = choose_placement(team.device.type, "bf16" if team.device.type == "cuda" else "fp32")
        torch.manual_seed(0)
        base = random_model(spec, placement, layers=layers)
        row["fused"] = fuse_kernels(base, team.device)
        model = attach_adapter(base, LoraSection(rank=16), seed=0).train()
        for parameter in base.parameters():  # the draws follow the GPU's generator: one rank's for all
            if team.size > 1:
                torch.distributed.broadcast(parameter.data, 0, group=team.tensors)
        tokens = torch.randint(0, spec.vocab_size, (context,), generator=torch.Generator().manual_seed(0))
        if team.size == 1:
            step = StreamedStep(model, plan, device=team.device)
        else:
            step = SequenceStep(model, plan, device=team.device, team=team, strategy=strategy, order=order)
        with step:
            step.run(tokens[: 2 * plan.tile], scale=1.0 / context)  # kernels, connections
            model.zero_grad(set_to_none=True)
            synchronize(team.device)
            if team.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            team.total([0.0])
            began = time.perf_counter()
            outcome = step.run(tokens, scale=1.0 / (context - 1))
            if team.size > 1:
                WholeSum(team)([p.grad for p in trainable(model).values()])
            synchronize(team.device)
            seconds = time.perf_counter() - began
            row["backend"] = step.backend_name
        row |= {
            "seconds": seconds,
            "stages": outcome.seconds,
            "loss": outcome.loss_sum / (context - 1),
            "predicted_seconds": plan_row.step_seconds,
            "predicted_gpu_bytes": plan_row.gpu_peak_bytes,
        }
        if team.device.type == "cuda":
            free, total = torch.cuda.mem_get_info()
            mine = [torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved(), total - free]
            rows = team.gather(mine) if team.size > 1 else [mine]
            row["gpu_allocated"], row["gpu_reserved"], row["gpu_used"] = (list(x) for x in zip(*rows, strict=True))


# --- gradients on the wire -----------------------------------------------------------------------------------


def gradient_sums(sizes: Sizes, team: Any, record: Record) -> None:
    """Bytes and seconds of an update's gradients, whole and as low-rank factors, of an adapter and of every weight."""
    import torch

    from engine.distributed.data_parallel import WholeSum
    from engine.distributed.low_rank_sum import LowRankSum
    from engine.models.catalogue import find_model

    spec = find_model(sizes.sum_model)
    every = [(linear.outputs, linear.inputs) for linear in spec.linears]
    adapter = [shape for out, inp in every for shape in ((16, inp), (out, 16))]
    for what, shapes in (("adapter r=16", adapter), ("every weight", every)):
        with case(record, f"gradients of {what}", team) as row:
            made = [torch.randn(shape, device=team.device) for _ in range(spec.layers) for shape in shapes]
            for name, add_up in (
                ("whole", WholeSum(team)),
                ("powersgd r=1", LowRankSum(team, 1, whole_updates=0)),
                ("powersgd r=4", LowRankSum(team, 4, whole_updates=0)),
            ):
                add_up(made)
                team.sent_bytes = 0
                seconds = timed(lambda: add_up(made), team.device, 3)
                row[name] = {"seconds": seconds, "bytes": team.sent_bytes // 4}


# --- ZeRO-3 --------------------------------------------------------------------------------------------------


def zero_group(_: argparse.Namespace, sizes: Sizes, team: Any, record: Record) -> None:
    """Steps of whole windows with the weights spread; memory of each rank against what one would need."""
    import tempfile as temporary

    import torch

    from engine import config as run_config
    from engine.data.windows import Window
    from engine.distributed.zero_step import ZeroStep, ZeroTuning
    from engine.models.adapter import attach_adapter
    from engine.models.catalogue import find_model
    from engine.models.placement import choose_placement
    from engine.models.random import random_model
    from engine.optim.adamw import adamw
    from engine.runtime.deepspeed_config import deepspeed_config

    class Patient:
        def progress(self, *_: object, **__: object) -> None: ...

        def stop_requested(self) -> bool:
            return False

    with case(record, "zero3", team) as row:
        on_gpu = team.device.type == "cuda"
        precision = "bf16" if on_gpu else "fp32"
        settings = {
            "model": {"name": sizes.zero_model, "precision": precision, "device": team.device.type},
            "distributed": {"strategy": "zero3"},
            "lora": {"rank": 16},
        }
        config = run_config.from_mapping(settings)
        spec = find_model(sizes.zero_model)
        placement = choose_placement(team.device.type, precision)
        torch.manual_seed(0)
        base = random_model(spec, placement, layers=sizes.zero_layers, weights_device=torch.device("cpu"))
        row["weights_bytes"] = sum(p.numel() * p.element_size() for p in base.parameters())
        tuning = ZeroTuning(attach_adapter(base, config.lora, 0))
        folder = Path(temporary.mkdtemp())
        path = folder / "deepspeed.json"
        path.write_text(json.dumps(deepspeed_config(config, sizes.zero_context, team.size)))
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        step = ZeroStep(tuning, adamw(tuning, config, 1e-4), path, device=team.device, team=team, recompute=True)
        if on_gpu:
            row["gpu_after_init"] = team.gather(torch.cuda.memory_allocated())
        generator = torch.Generator().manual_seed(0)  # the same windows in every rank, which takes its own of them
        windows = [
            Window(torch.randint(0, spec.vocab_size, (sizes.zero_context,), generator=generator).numpy())
            for _ in range(team.size)
        ]
        seconds, losses = [], []
        for _ in range(3):
            synchronize(team.device)
            began = time.perf_counter()
            targets = sum(window.targets for window in windows)
            result = step.run(windows, 1.0 / targets, Patient())
            row["grad_norm"] = step.pipeline.apply([], 0)
            synchronize(team.device)
            seconds.append(time.perf_counter() - began)
            losses.append(result.loss_sum / result.tokens)
        row |= {"context": sizes.zero_context, "seconds": min(seconds), "all_seconds": seconds, "losses": losses}
        row["ok"] = losses[-1] < losses[0]
        if on_gpu:
            row["gpu_allocated"] = team.gather(torch.cuda.max_memory_allocated())


# --- the whole ------------------------------------------------------------------------------------------------


def launch(args: argparse.Namespace, group: str, ranks: int, limit: float, number: int = 0, card: str = "") -> Any:
    """Starts a group; returns (process, file of its results)."""
    part = tempfile.mktemp(suffix=".json")
    own = [str(Path(__file__)), args.out, "--device", args.device, "--group", group, "--part", part]
    own += ["--number", str(number)]
    words = [sys.executable, *own]
    environment = {**os.environ, "NCCL_NVLS_ENABLE": "0", "PYTHONUNBUFFERED": "1", "MASTER_PORT": str(29540 + number)}
    environment.setdefault("OMP_NUM_THREADS", "4" if args.device == "cuda" else "1")
    if args.device == "cpu":
        environment |= {"DS_ACCELERATOR": "cpu"}
    if ranks > 1:
        words = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", *own]
    if card:
        environment["CUDA_VISIBLE_DEVICES"] = card
    print(f"--- {group} {number or ''} with {ranks} ranks, at most {limit:.0f} s", flush=True)
    return subprocess.Popen(words, env=environment, start_new_session=True, cwd=ROOT), Path(part)


def gather(process: Any, part: Path, limit: float) -> list[dict[str, Any]]:
    """Waits, ends what takes too long, and reads what there is."""
    try:
        process.wait(limit)
    except subprocess.TimeoutExpired:
        print("    took too long", flush=True)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    rows = json.loads(part.read_text()) if part.exists() else []
    if process.returncode:
        rows.append({"case": "launch", "ranks": 0, "error": f"ended with {process.returncode}"})
    return rows


def versions(device: str) -> dict[str, Any]:
    import importlib.metadata

    found: dict[str, Any] = {}
    for name in ("torch", "transformers", "peft", "accelerate", "deepspeed"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    if device == "cuda":
        text = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=False,
        ).stdout
        found["cards"] = text.strip().splitlines()
        topology = subprocess.run(["nvidia-smi", "topo", "-m"], capture_output=True, text=True, check=False).stdout
        found["topology"] = topology.splitlines()[:8]
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """What a person reads, last."""
    lines = []
    alone = {(r["context"], r["layers"]): r for r in rows if r["case"] == "alone" and "seconds" in r}
    lines.append(
        "| case | ranks | context × layers | seconds | speed-up | GiB reserved a rank / used (planned) | loss |"
    )
    lines.append("|---|---|---|---|---|---|---|")
    for r in rows:
        if "seconds" not in r or "layers" not in r:
            continue
        one = alone.get((r["context"], r["layers"]))
        speed = f"{one['seconds'] / r['seconds']:.2f}" if one else "-"
        used = ", ".join(f"{b / 2**30:.1f}" for b in r.get("gpu_reserved", [])) or "-"
        used += " / " + (", ".join(f"{b / 2**30:.1f}" for b in r.get("gpu_used", [])) or "-")
        plan = f"{r['predicted_gpu_bytes'] / 2**30:.1f}"
        lines.append(
            f"| {r['case']} | {r['ranks']} | {r['context']:,} × {r['layers']} | {r['seconds']:.2f} "
            f"(planned {r['predicted_seconds']:.1f}) | {speed} | {used} ({plan}) | {r['loss']:.5f} |"
        )
    for r in rows:
        if r["case"].startswith("parity") and "loss_error" in r:
            verdict = "ok" if r["ok"] else "WRONG"
            lines.append(f"{r['case']}: loss {r['loss_error']:.1e}, gradients {r['gradient_error']:.1e}: {verdict}")
        if r["case"] == "link" and "send_receive_bytes_a_second" in r:
            lines.append(
                f"link: {r['send_receive_bytes_a_second'] / 1e9:.1f} GB/s each way, "
                f"all-reduce {r['all_reduce_bytes_a_second'] / 1e9:.1f} GB/s"
            )
        if r["case"].startswith("gradients"):
            parts = [
                f"{k}: {v['bytes'] / 1e6:.2f} MB, {v['seconds'] * 1e3:.2f} ms"
                for k, v in r.items()
                if isinstance(v, dict)
            ]
            lines.append(f"{r['case']}: " + "; ".join(parts))
        if r["case"] == "zero3" and "seconds" in r:
            held = ", ".join(f"{b / 2**30:.2f}" for b in r.get("gpu_after_init", []))
            peak = ", ".join(f"{b / 2**30:.2f}" for b in r.get("gpu_allocated", []))
            lines.append(
                f"zero3: {r['weights_bytes'] / 2**30:.2f} GiB of weights; GiB a rank at rest {held or '-'}, "
                f"peak {peak or '-'}; "
                f"{r['seconds']:.2f} s a step of {r['ranks']} × {r['context']:,} tokens; losses {r['losses']}"
            )
    lines += [
        f"FAILED {r['case']} ({r['ranks']} ranks): {r['error'].strip().splitlines()[-1]}" for r in rows if "error" in r
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=9.3)
    parser.add_argument("--only", nargs="*", default=["ranks", "alone", "zero"])
    for name in ("--group", "--part"):
        parser.add_argument(name, default="")
    parser.add_argument("--number", type=int, default=0)
    args = parser.parse_args()
    if args.group:
        return rank_main(args)
    deadline = time.monotonic() + 60 * args.minutes
    rows: list[dict[str, Any]] = []

    def left(most: float) -> float:
        return max(1.0, min(most, deadline - time.monotonic() - 5))

    def keep() -> None:
        result = {"versions": versions(args.device), "device": args.device, "rows": rows}
        Path(args.out).write_text(json.dumps(result, indent=1))

    if "ranks" in args.only:
        limit = left(300)
        rows += gather(*launch(args, "ranks", args.gpus, limit), limit)
        keep()
    if "alone" in args.only:
        limit = left(260)
        begun = [
            launch(args, "alone", 1, limit, number, str(number % args.gpus) if args.device == "cuda" else "")
            for number in range(len(SIZES[args.device].contexts))
        ]
        until = time.monotonic() + limit
        for process, part in begun:
            rows += gather(process, part, max(1.0, until - time.monotonic()))
        keep()
    if "zero" in args.only:
        limit = left(200)
        if limit > 30:
            rows += gather(*launch(args, "zero", args.gpus, limit), limit)
        keep()
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
