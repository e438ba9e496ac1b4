"""What the ranks of benchmarks/distributed_gpu.py do: each function is a part, which records its cases as they end."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.distributed_cases import SIZES, Record, Sizes, case

GIB = 1 << 30


def rank_main(args: argparse.Namespace) -> int:
    """One rank, or the only one."""
    from engine.hardware.rank_place import RankPlace
    from engine.launch.rank import join, prepare_environment

    if "RANK" not in os.environ:
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        os.environ.setdefault("MASTER_PORT", "29531")
    place = RankPlace.from_environment(os.environ)
    prepare_environment(place)
    import torch

    group = join(place, 300.0, on_cpu=args.device == "cpu")
    record = Record(Path(args.part), group.leads)
    sizes = SIZES[args.device]
    if args.device == "cpu":
        torch.set_num_threads(1)
    for name in args.only:
        PARTS[name](args, sizes, group, record)
    sys.stdout.flush()
    os._exit(0)


def ring_part(args: argparse.Namespace, sizes: Sizes, group: Any, record: Record) -> None:
    """The ring's long windows."""
    for context, layers in sizes.contexts:
        ring(args, group, record, sizes.model, context, layers, "ring", "zigzag")


def orders_part(args: argparse.Namespace, sizes: Sizes, group: Any, record: Record) -> None:
    """The same window by every way to share it."""
    for strategy, order in (("ring", "zigzag"), ("ring", "contiguous"), ("ulysses", "contiguous")):
        ring(args, group, record, sizes.model, *sizes.other_orders, strategy, order)


def alone_part(args: argparse.Namespace, sizes: Sizes, group: Any, record: Record) -> None:
    """The ring's windows on one GPU."""
    context, layers = sizes.contexts[args.number]
    ring(args, group, record, sizes.model, context, layers, "alone", "")
    if args.number == 0:
        ring(args, group, record, sizes.model, *sizes.other_orders, "alone", "")


def long_part(name: str) -> Any:
    """A window as long as a GPU of 24 GB takes, by the ring, all layers."""

    def run(args: argparse.Namespace, sizes: Sizes, group: Any, record: Record) -> None:
        from engine.models.catalogue import find_model

        model, context = sizes.long[name]
        layers = args.layers or find_model(model).layers
        ring(args, group, record, model, args.context or context, layers, "ring", "zigzag", capped=True)

    return run


# --- exactness -----------------------------------------------------------------------------------------------


def parity(_: argparse.Namespace, sizes: Sizes, group: Any, record: Record) -> None:
    """Loss and gradients of one rank and of several, fp32, against plain transformers in fp64."""
    del sizes
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    from engine.config import LoraSection
    from engine.distributed.gradient_sum import AllReduceSum
    from engine.models.adapter import attach_adapter, trainable
    from engine.plan.stream_plan import StreamPlan
    from engine.steps.sequence_sharding import SequenceSharding
    from engine.streaming.step import StreamedStep

    device = group.device
    torch.backends.cuda.matmul.allow_tf32 = False
    heads = 4 if 4 % group.size == 0 else group.size
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
        made.eval()
        for parameter in trainable(made).values():
            parameter.data = (torch.randn(parameter.shape, generator=drawn) * 0.05).to(device)
        return made

    wanted, total, predicted = plain_gradients(model().double(), tokens, starts)

    def add(row: dict[str, Any], made: Any, loss_sum: float) -> None:
        row["loss_error"] = abs(loss_sum / total - 1)
        gradients = [p.grad for p in trainable(made).values()]
        row["gradient_error"] = max(
            float((a.double() - b).norm() / b.norm()) for a, b in zip(gradients, wanted, strict=True)
        )
        row["ok"] = max(row["loss_error"], row["gradient_error"]) < 1e-4

    for stash in (True, False):
        used = dataclasses.replace(plan, stash=stash)
        with case(record, f"parity one rank stash={stash}", group) as row:
            alone = model()
            with StreamedStep(alone, used, device=device) as step:
                add(row, alone, step.run(tokens, document_starts=starts, scale=1.0 / predicted).loss_sum)
        for strategy, order in (("ring", "zigzag"), ("ring", "contiguous"), ("ulysses", "contiguous")):
            with case(record, f"parity {strategy} {order} stash={stash}", group) as row:
                shared = model()
                sharding = SequenceSharding(group, strategy, order)
                with StreamedStep(shared, used, device=device, sharding=sharding) as step:
                    found = step.run(tokens, document_starts=starts, scale=1.0 / predicted)
                AllReduceSum(group)([p.grad for p in trainable(shared).values()])
                add(row, shared, found.loss_sum)


def plain_gradients(model: Any, tokens: Any, starts: tuple[int, ...]) -> tuple[list[Any], float, int]:
    """The mean loss's gradients by transformers and autograd alone, a document at a time; loss sum and targets."""
    import torch

    from engine.models.adapter import trainable

    ends = (*starts[1:], len(tokens))
    predicted = sum(end - start - 1 for start, end in zip(starts, ends, strict=True))
    total = 0.0
    for start, end in zip(starts, ends, strict=True):
        if end - start < 2:
            continue
        ids = tokens[start:end].to(next(model.parameters()).device)[None]
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
        (loss / predicted).backward()
        total += float(loss.detach())
    return [p.grad for p in trainable(model).values()], total, predicted


# --- the link ------------------------------------------------------------------------------------------------


def link(_: argparse.Namespace, sizes: Sizes, group: Any, record: Record) -> None:
    """Bytes a second round the ring, each way at once, and of an all-reduce."""
    import torch

    from engine.distributed.ring import Transfer

    with case(record, "link", group) as row:
        mine = torch.ones(sizes.message // 4, device=group.device)
        theirs = torch.empty_like(mine)

        def send() -> None:
            transfer = Transfer(group)
            transfer.start([(mine, theirs)])
            transfer.finish()

        row["send_receive_bytes_a_second"] = sizes.message / timed(send, group.device)
        row["all_reduce_bytes_a_second"] = sizes.message / timed(lambda: group.sum_tensor(theirs), group.device)


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


def planned(args: argparse.Namespace, group: Any, model: str, context: int, layers: int, strategy: str) -> Any:
    """The shortened model, and the planner's row for a rank of it; `args.cap` limits its GPU memory."""
    import torch

    from engine.config import DistributedSection, TrainingSection
    from engine.hardware.inventory import take_inventory
    from engine.models.catalogue import find_model
    from engine.plan.cluster import share_of
    from engine.plan.planner import plan_context
    from engine.plan.request import PlanRequest, storage, without_gpu

    spec = find_model(model).with_layers(layers)
    machine = take_inventory(Path("/tmp"))
    if group.device.type == "cpu":
        machine = without_gpu(machine)
    else:
        free, _ = torch.cuda.mem_get_info()
        first = dataclasses.replace(machine.gpus[0], memory_free=free)
        if args.cap:
            first = dataclasses.replace(first, memory_total=24 * GIB, memory_free=round(args.cap * GIB))
        # A virtual machine whose memory grows as it is used says at first that it has little.
        ram = round(args.ram_gib * GIB) or machine.ram_total
        machine = dataclasses.replace(machine, gpus=(first,), ram_total=ram, ram_available=round(0.96 * ram))
    compute_type, weights = storage(machine, "bf16" if group.device.type == "cuda" else "fp32")
    planning = PlanRequest(
        machine=share_of(machine, group.size),
        spec=spec,
        compute_type=compute_type,
        weights=tuple(w for w in weights if w == "resident" or (args.cap and w == "streamed")),
        training=TrainingSection(step="streamed", tokens_per_update=context),
        ranks=group.size,
        distributed=DistributedSection(strategy="auto" if group.size == 1 else strategy),
        rank_link=200e9,
    )
    return spec, plan_context(planning, context)


def ring(
    args: argparse.Namespace,
    group: Any,
    record: Record,
    model: str,
    context: int,
    layers: int,
    strategy: str,
    order: str,
    *,
    capped: bool = False,
) -> None:
    """One exact step of one window by all ranks, in the planner's layout."""
    import torch

    from engine.config import LoraSection
    from engine.distributed.gradient_sum import AllReduceSum
    from engine.models.adapter import attach_adapter, trainable
    from engine.models.fused import fuse_kernels
    from engine.models.placement import choose_placement
    from engine.models.random import random_model
    from engine.steps.sequence_sharding import SequenceSharding
    from engine.streaming.step import StreamedStep

    on_gpu = group.device.type == "cuda"
    name = f"{strategy} {order}".strip()
    args = argparse.Namespace(**{**vars(args), "cap": args.cap if capped else 0.0})
    with case(record, f"{name}, {args.cap:g} GiB" if args.cap else name, group) as row:
        if on_gpu:
            _, total = torch.cuda.mem_get_info()
            torch.cuda.set_per_process_memory_fraction(args.cap * GIB / total if args.cap else 1.0)
        spec, plan_row = planned(args, group, model, context, layers, strategy)
        plan = plan_row.layout.stream
        row |= {"model": model, "context": context, "layers": layers, "plan": dataclasses.asdict(plan)}
        row |= {"predicted_seconds": plan_row.step_seconds, "predicted_gpu_bytes": plan_row.gpu_peak_bytes}
        row |= {"predicted_host_bytes": plan_row.host_peak_bytes, "capped_gib": args.cap}
        if group.leads:
            print(f"    {name} {context:,} x {layers}: {plan_row.step_seconds:.1f} s predicted", flush=True)
        placement = choose_placement(group.device.type, "bf16" if on_gpu else "fp32")
        torch.manual_seed(0)
        home = torch.device("cpu") if plan.streams_weights else group.device
        base = random_model(spec, placement, layers=layers, weights_device=home)
        row["fused"] = fuse_kernels(base, group.device)
        made = attach_adapter(base, LoraSection(rank=16), seed=0).train()
        if group.size > 1 and home.type == group.device.type:
            for parameter in base.parameters():  # the draws follow the GPU's generator: one rank's for all
                torch.distributed.broadcast(parameter.data, 0, group=group.tensors)
        tokens = torch.randint(0, spec.vocab_size, (context,), generator=torch.Generator().manual_seed(0))
        if group.size == 1:
            step = StreamedStep(made, plan, device=group.device, timed=True)
        else:
            sharding = SequenceSharding(group, strategy, order)
            step = StreamedStep(made, plan, device=group.device, sharding=sharding, timed=True)
        with step:
            step.run(tokens[: 2 * plan.tile], scale=1.0 / context)  # kernels, connections
            made.zero_grad(set_to_none=True)
            synchronize(group.device)
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            group.total([0.0])
            began = time.perf_counter()
            outcome = step.run(tokens, scale=1.0 / (context - 1))
            if group.size > 1:
                AllReduceSum(group)([p.grad for p in trainable(made).values()])
            synchronize(group.device)
            row["seconds"] = time.perf_counter() - began
            row["backend"] = step.backend_name
        row |= {"stages": outcome.seconds, "loss": outcome.loss_sum / (context - 1)}
        row["host_peak"] = group.gather(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        if on_gpu:
            free, total = torch.cuda.mem_get_info()
            mine = [torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved(), total - free]
            row["gpu_allocated"], row["gpu_reserved"], row["gpu_used"] = map(
                list, zip(*group.gather(mine), strict=True)
            )


# --- gradients on the wire -----------------------------------------------------------------------------------


def gradient_sums(_: argparse.Namespace, sizes: Sizes, group: Any, record: Record) -> None:
    """Bytes and seconds of an update's gradients, whole and as low-rank factors, of an adapter and of every weight."""
    import torch

    from engine.distributed.gradient_sum import AllReduceSum
    from engine.distributed.powersgd import PowerSgd
    from engine.models.catalogue import find_model

    spec = find_model(sizes.sum_model)
    every = [(linear.outputs, linear.inputs) for linear in spec.linears]
    adapter = [shape for out, inp in every for shape in ((16, inp), (out, 16))]
    for what, shapes in (("adapter r=16", adapter), ("every weight", every)):
        with case(record, f"gradients of {what}", group) as row:
            made = [torch.randn(shape, device=group.device) for _ in range(spec.layers) for shape in shapes]
            for name, add_up in (
                ("whole", AllReduceSum(group)),
                ("powersgd r=1", PowerSgd(group, 1, whole_updates=0)),
                ("powersgd r=4", PowerSgd(group, 4, whole_updates=0)),
            ):
                add_up(made)
                group.sent_bytes = 0
                seconds = timed(lambda: add_up(made), group.device, 3)
                row[name] = {"seconds": seconds, "bytes": group.sent_bytes // 4}


# --- ZeRO-3 --------------------------------------------------------------------------------------------------


def zero(_: argparse.Namespace, sizes: Sizes, group: Any, record: Record) -> None:
    """Steps of whole windows with the weights spread; memory of each rank against what one would need."""
    import torch

    from engine import config as run_config
    from engine.data.windows import Window
    from engine.models.adapter import attach_adapter
    from engine.models.catalogue import find_model
    from engine.models.placement import choose_placement
    from engine.models.random import random_model
    from engine.optim.adamw import adamw
    from engine.runs.deepspeed_config import deepspeed_config
    from engine.steps.zero_step import ZeroStep, ZeroTuning

    class Patient:
        def progress(self, *_: object, **__: object) -> None: ...

        def stop_requested(self) -> bool:
            return False

    with case(record, "zero3", group) as row:
        on_gpu = group.device.type == "cuda"
        precision = "bf16" if on_gpu else "fp32"
        settings = {
            "model": {"name": sizes.zero_model, "precision": precision, "device": group.device.type},
            "distributed": {"strategy": "zero3"},
            "lora": {"rank": 16},
        }
        config = run_config.from_mapping(settings)
        spec = find_model(sizes.zero_model)
        placement = choose_placement(group.device.type, precision)
        torch.manual_seed(0)
        base = random_model(spec, placement, layers=sizes.zero_layers, weights_device=torch.device("cpu"))
        row["weights_bytes"] = sum(p.numel() * p.element_size() for p in base.parameters())
        tuning = ZeroTuning(attach_adapter(base, config.lora, 0))
        folder = Path(tempfile.mkdtemp())
        path = folder / "deepspeed.json"
        path.write_text(json.dumps(deepspeed_config(config, sizes.zero_context, group.size)))
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        step = ZeroStep(tuning, adamw(tuning, config, 1e-4), path, device=group.device, group=group, recompute=True)
        if on_gpu:
            row["gpu_after_init"] = group.gather(torch.cuda.memory_allocated())
        generator = torch.Generator().manual_seed(0)  # the same windows in every rank, which takes its own of them
        windows = [
            Window(torch.randint(0, spec.vocab_size, (sizes.zero_context,), generator=generator).numpy())
            for _ in range(group.size)
        ]
        seconds, losses = [], []
        for _ in range(3):
            synchronize(group.device)
            began = time.perf_counter()
            targets = sum(window.targets for window in windows)
            result = step.run(windows, 1.0 / targets, Patient())
            row["grad_norm"] = step.pipeline.apply([], 0)
            synchronize(group.device)
            seconds.append(time.perf_counter() - began)
            losses.append(result.loss_sum / result.tokens)
        row |= {"context": sizes.zero_context, "seconds": min(seconds), "all_seconds": seconds, "losses": losses}
        row["ok"] = losses[-1] < losses[0]
        if on_gpu:
            row["gpu_allocated"] = group.gather(torch.cuda.max_memory_allocated())


PARTS: dict[str, Any] = {
    "parity": parity,
    "link": link,
    "sums": gradient_sums,
    "ring": ring_part,
    "orders": orders_part,
    "long-1.5b": long_part("long-1.5b"),
    "long-7b": long_part("long-7b"),
    "alone": alone_part,
    "zero": zero,
}
