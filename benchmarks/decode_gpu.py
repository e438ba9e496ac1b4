"""Tokens a second of generated text beside transformers.generate, and of short steps with and without CUDA graphs.

    python benchmarks/decode_gpu.py OUT.json                  about 4 minutes on an H200
    python benchmarks/decode_gpu.py OUT.json --device cpu     the same with the demo model, as a dry run

decode bf16, decode nf4
    A model with a LoRA adapter (r=16) continues the same prompts by transformers.generate and by engine.generation, at
    batch 1 and 16, in turn; greedy, without an end token.
step
    Steps of packed windows of 8,192 tokens in NF4, as engine.steps runs them, without graphs and with them; and what a
    profiler finds while no kernel ran.
train
    `engine train` as a user starts it, without graphs and with them: tokens a second of the steps after the first ten,
    and seconds before the first event.
imports
    Seconds of what a run imports before its first event.

Weights are random: time does not depend on their values. Each part runs in a process of its own, and is written to
OUT.json as soon as it ends.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

PARTS = ("decode bf16", "decode nf4", "step", "train", "imports")
PACKAGES = (
    "asyncio",
    "email",
    "json",
    "logging",
    "unittest",
    "xml",
    "http",
    "importlib",
    "concurrent",
    "multiprocessing",
)


class Sizes:
    """What differs between a GPU and a dry run."""

    def __init__(self, device: str) -> None:
        gpu = device == "cuda"
        self.device, self.model = device, "qwen2.5-coder-1.5b" if gpu else "demo"
        self.prompt, self.new, self.pairs = (512, 128, 3) if gpu else (20, 6, 1)
        self.context, self.steps = (8192, 60) if gpu else (256, 12)
        self.windows = 24 if gpu else 6


# --- decoding -----------------------------------------------------------------------------------------------------


def decode(sizes: Sizes, precision: str) -> list[dict[str, Any]]:
    import torch

    from engine.benchmarking.machine import describe_machine
    from engine.config import LoraSection
    from engine.generation.batched import open_generator, write_together
    from engine.generation.sampling import Sampling
    from engine.models.adapter import attach_adapter, trainable
    from engine.models.catalogue import find_model
    from engine.models.fused import fuse_kernels
    from engine.models.placement import choose_placement
    from engine.models.random import random_model

    placement = choose_placement(sizes.device, precision if sizes.device == "cuda" else "fp32")
    base = random_model(find_model(sizes.model), placement)
    fused = fuse_kernels(base, placement.device)
    model = attach_adapter(base, LoraSection(), seed=0).eval()
    for parameter in trainable(model).values():
        torch.nn.init.normal_(parameter, std=0.01)
    rows = []
    for batch in (1, 16):
        ids = torch.randint(5, 1000, (batch, sizes.prompt), generator=torch.Generator().manual_seed(batch))
        written: dict[str, list[list[int]]] = {}

        def by_library(ids: Any = ids, new: int = sizes.new) -> list[list[int]]:
            given = ids.to(placement.device)
            with torch.no_grad():
                found = model.generate(
                    input_ids=given,
                    attention_mask=torch.ones_like(given),
                    max_new_tokens=new,
                    min_new_tokens=new,
                    do_sample=False,
                    use_cache=True,
                    pad_token_id=0,
                    eos_token_id=None,
                )
            return found[:, ids.shape[1] :].tolist()

        def by_engine(ids: Any = ids, new: int = sizes.new) -> list[list[int]]:
            texts: list[list[int]] = [[] for _ in ids]
            with open_generator(model, capacity=ids.shape[1] + new, rows=len(ids)) as generator:

                def keep(i: int, token: int) -> bool:
                    texts[i].append(token)
                    return True

                write_together(generator, ids.tolist(), Sampling(max_tokens=new), keep)
                by_engine.captures = getattr(generator, "captures", None)  # type: ignore[attr-defined]
            return texts

        ways = {"transformers.generate": by_library, "engine": by_engine}
        for way in ways.values():
            way(new=min(8, sizes.new))  # kernels are compiled and chosen
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(sizes.pairs if precision == "bf16" else 1):
            for name, way in ways.items():
                _wait(sizes)
                began = time.perf_counter()
                written[name] = way()
                _wait(sizes)
                seconds[name].append(time.perf_counter() - began)
        pairs = list(zip(*written.values(), strict=True))
        agree = sum(a == b for one, other in pairs for a, b in zip(one, other, strict=True))
        rows.append(
            {
                "part": f"decode {precision}",
                "batch": batch,
                "prompt": sizes.prompt,
                "new": sizes.new,
                "seconds": seconds,
                "tokens_per_second": {n: batch * sizes.new / statistics.median(s) for n, s in seconds.items()},
                "ratios": [a / b for a, b in zip(*seconds.values(), strict=True)],
                "same_tokens": agree / (batch * sizes.new),
                "graphs": by_engine.captures,  # type: ignore[attr-defined]
                "fused_kernels": fused,
                **describe_machine(placement.device),
            }
        )
    return rows


def _wait(sizes: Sizes) -> None:
    if sizes.device == "cuda":
        import torch

        torch.cuda.synchronize()


# --- steps --------------------------------------------------------------------------------------------------------


class _Silent:
    def progress(self, *_: object, **__: object) -> None: ...

    def stop_requested(self) -> bool:
        return False


def step(sizes: Sizes) -> list[dict[str, Any]]:
    import numpy as np
    import torch

    from engine.benchmarking.machine import describe_machine
    from engine.config import LoraSection
    from engine.data.windows import Window
    from engine.models.adapter import attach_adapter, trainable
    from engine.models.catalogue import find_model
    from engine.models.fine_tuning import AdapterTuning
    from engine.models.fused import fuse_kernels
    from engine.models.placement import choose_placement
    from engine.models.random import random_model
    from engine.optim.guarded import launch_update
    from engine.plan.stream_plan import StreamPlan
    from engine.steps.streamed_windows import StreamedWindows

    gpu = sizes.device == "cuda"
    placement = choose_placement(sizes.device, "nf4" if gpu else "fp32")
    base = random_model(find_model(sizes.model), placement)
    fuse_kernels(base, placement.device)
    model = attach_adapter(base, LoraSection(), seed=0).train()
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=1e-4, fused=True)
    plan = StreamPlan(tile=sizes.context, key_block=sizes.context, keep_layers=99, weights="nf4" if gpu else "resident")
    drawn, windows = np.random.default_rng(0), []
    for _ in range(sizes.windows):
        length = sizes.context - int(drawn.integers(0, sizes.context // 32))
        starts = sorted({0, *drawn.integers(1, length, 5).tolist()})
        windows.append(Window(drawn.integers(5, 1000, length), tuple(starts)))
    trained = list(trainable(model).values())
    rows, losses = [], {}
    untrained = {name: parameter.detach().clone() for name, parameter in trainable(model).items()}
    for graphs in (False, True):
        with torch.no_grad():
            for name, parameter in trainable(model).items():
                parameter.copy_(untrained[name])
        said: list[str] = []
        way = StreamedWindows(
            AdapterTuning(model),
            plan,
            device=placement.device,
            spill_directory=Path(tempfile.gettempdir()),
            fill_up_to=sizes.context if gpu else None,
            graphs=graphs,
            notify=said.append,
        )

        def update(window: Window, way: StreamedWindows = way) -> float:
            optimizer.zero_grad(set_to_none=True)
            result = way.run([window], 1.0 / window.targets, _Silent())
            norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
            figures = [each for each in (result.summed, norm) if isinstance(each, torch.Tensor)]
            if rows_are_timed:  # in this order, as the loop does
                launch_update(optimizer, figures)
            assert math.isfinite(float(norm))
            return result.loss_sum

        rows_are_timed = False
        losses[graphs] = [update(window) for window in windows[:8]]  # of the same weights, graphs off and on
        rows_are_timed = True
        _wait(sizes)
        began, seconds = time.perf_counter(), []
        for window in windows[8:] or windows:
            update(window)
            _wait(sizes)
            seconds.append(time.perf_counter() - began)
            began = time.perf_counter()
        row: dict[str, Any] = {
            "part": "step",
            "graphs": graphs,
            "said": said,
            "seconds": seconds,
            "tokens_per_second": sizes.context * 63 / 64 / statistics.median(seconds),
            "gpu_peak": torch.cuda.max_memory_allocated() if gpu else None,
            "profile": _profiled(lambda: update(windows[0])) if gpu else {},
            **describe_machine(placement.device),
        }
        if graphs:
            pairs = zip(losses[False], losses[True], strict=True)
            row["largest_difference_of_a_loss"] = max(abs(a - b) / abs(a) for a, b in pairs)
        rows.append(row)
        way.close()
    return rows


def _profiled(run: Any) -> dict[str, Any]:
    """Milliseconds in which kernels ran, and in which none did before the step's end, by the kernels around."""
    import torch

    activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        run()
        torch.cuda.synchronize()
    events = profile.profiler.kineto_results.events()
    kernels = sorted(
        (e.start_ns(), e.start_ns() + e.duration_ns(), e.name()[:60])
        for e in events
        if e.device_type() == torch._C._autograd.DeviceType.CUDA
    )
    gaps: dict[str, float] = {}
    end, before, busy = kernels[0][0], "", 0.0
    for start, stop, name in kernels:
        if start > end and before:
            gaps[f"{before} -> {name}"] = gaps.get(f"{before} -> {name}", 0.0) + (start - end) / 1e6
        busy += max(0, stop - max(start, end)) / 1e6
        if stop > end:
            end, before = stop, name
    waits = {
        e.key: [e.count, e.self_cpu_time_total / 1e3]
        for e in profile.key_averages()
        if "ynchronize" in e.key or e.key in ("aten::item", "aten::_local_scalar_dense", "cudaMemcpyAsync")
    }
    return {
        "span_ms": (end - kernels[0][0]) / 1e6,
        "busy_ms": busy,
        "launches": sum(e.count for e in profile.key_averages() if e.key.startswith(("cudaLaunch", "cuLaunch"))),
        "idle_ms": dict(sorted(gaps.items(), key=lambda gap: -gap[1])[:12]),
        "waits": waits,
        "kernels_ms": {
            e.key[:80]: e.self_device_time_total / 1e3
            for e in sorted(profile.key_averages(), key=lambda e: -e.self_device_time_total)[:15]
        },
    }


def own_path() -> dict[str, str]:
    """PYTHONPATH of a child that finds what this process finds."""
    return {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}


# --- imports ------------------------------------------------------------------------------------------------------


def imports(_: Sizes) -> list[dict[str, Any]]:
    """What a run imports before it can say anything: the packages that take longest, with what they import."""
    rows = []
    for turn in ("cold", "warm"):
        words = [sys.executable, "-X", "importtime", "-c", "import engine.recipes.fine_tune"]
        began = time.perf_counter()
        ended = subprocess.run(
            words, env={**os.environ, **own_path()}, capture_output=True, text=True, check=True, timeout=120
        )
        seconds = time.perf_counter() - began
        found = []
        for text in ended.stderr.splitlines():
            parts = text.removeprefix("import time:").split("|")
            if len(parts) == 3 and parts[1].strip().isdigit():
                found.append((int(parts[1]) / 1e6, parts[2].strip()))
        longest = sorted(found, reverse=True)[:30]
        rows.append({"part": "imports", "turn": turn, "seconds": seconds, "longest": longest})
    return rows


# --- the front door -----------------------------------------------------------------------------------------------


def train(sizes: Sizes) -> list[dict[str, Any]]:
    from benchmarks.ablation import write_random_model

    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, repository = folder / "model", folder / "repository"
        repository.mkdir()
        for package in PACKAGES[: None if sizes.device == "cuda" else 2]:
            source = Path(sysconfig.get_path("stdlib")) / package
            for file in sorted(source.glob("*.py")):
                (repository / f"{package}_{file.name}").write_text(file.read_text("utf-8", "replace"), "utf-8")
        if sizes.device == "cuda":
            write_random_model(sizes.model, model)
        for graphs in (False, True):
            words = [sys.executable, "-m", "engine", "train", "--json", "--repo", str(repository)]
            words += ["--model", str(model) if sizes.device == "cuda" else "demo"]
            words += ["--output", str(folder / f"out-{graphs}"), "--max-steps", str(sizes.steps)]
            settings = {
                "training.context": sizes.context,
                "training.tokens_per_update": sizes.context,
                "training.epochs": 100,
                "training.step": "streamed",
                "training.evaluate_tokens": sizes.context,
                "training.cuda_graphs": str(graphs).lower(),
                "evaluation.at_end": "false",
                "model.device": sizes.device,
                "model.precision": "nf4" if sizes.device == "cuda" else "fp32",
            }
            for key, value in settings.items():
                words += ["--set", f"{key}={value}"]
            environment = {**os.environ, **own_path(), "ELITE_TUI_STATE_DIR": str(folder / "state")}
            began = time.time()
            ended = subprocess.run(
                words, cwd=folder, env=environment, capture_output=True, text=True, timeout=280, check=False
            )
            events = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
            steps = [event for event in events if event["kind"] == "StepCompleted"]
            seconds = [event["seconds"] for event in steps[10:]]
            rows.append(
                {
                    "part": "train",
                    "graphs": graphs,
                    "exit": ended.returncode,
                    "error": ended.stderr[-600:] if ended.returncode else "",
                    "said": [e["text"] for e in events if "graph" in str(e.get("text", ""))],
                    "before_the_first_event": events[0]["time"] - began if events else None,
                    "phases": {e["phase"]: e["time"] - began for e in events if e["kind"] == "PhaseChanged"},
                    "median_seconds": statistics.median(seconds) if seconds else None,
                    "tokens_per_second": statistics.median([e["tokens_per_second"] for e in steps[10:]] or [0.0]),
                    "between_steps": [b["time"] - a["time"] - b["seconds"] for a, b in pairwise(steps)][10:30],
                    "losses": [event["loss"] for event in steps],
                    "whole": time.time() - began,
                }
            )
    return rows


# --- all ----------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--child", action="store_true", help="Run one part in this process.")
    given = parser.parse_args()
    sizes = Sizes(given.device)
    if given.child:
        (part,) = given.parts
        rows = {"step": step, "train": train, "imports": imports}.get(
            part, lambda s: decode(s, part.rpartition(" ")[2])
        )(sizes)
        given.out.write_text(json.dumps(rows))
        return
    results: list[dict[str, Any]] = []
    for part in given.parts:
        began = time.perf_counter()
        own = given.out.with_suffix(f".{part.replace(' ', '-')}.part")
        words = [sys.executable, __file__, str(own), "--device", given.device, "--parts", part, "--child"]
        ended = subprocess.run(words, capture_output=True, text=True, check=False)
        if ended.returncode == 0:
            results += json.loads(own.read_text())
            own.unlink()
        else:
            results.append({"part": part, "error": ended.stderr[-1500:]})
        given.out.write_text(json.dumps(results, indent=1))
        print(f"{part}: {time.perf_counter() - began:.0f} s", flush=True)
    for row in results:
        print(line(row))


def line(row: dict[str, Any]) -> str:
    if row.get("error"):
        return f"{row['part']:<12} ERROR {row['error']}"
    if row["part"].startswith("decode"):
        speeds = "  ".join(f"{name} {speed:,.0f} tokens/s" for name, speed in row["tokens_per_second"].items())
        ratios = ", ".join(f"{ratio:.2f}" for ratio in row["ratios"])
        same = f"{row['same_tokens']:.0%} of the tokens alike"
        return f"{row['part']:<12} batch {row['batch']:>2}  {speeds}  ratios {ratios}  {same}  graphs {row['graphs']}"
    if row["part"] == "imports":
        longest = ", ".join(f"{name} {seconds:.1f}" for seconds, name in row["longest"][:12])
        return f"imports      {row['turn']}  {row['seconds']:.1f} s: {longest}"
    text = f"{row['part']:<12} graphs {row['graphs']!s:<5}  {row['tokens_per_second']:>9,.0f} tokens/s"
    if row["part"] == "step":
        profile = row["profile"]
        busy = (
            f"busy {profile['busy_ms']:.0f} of {profile['span_ms']:.0f} ms, waits {profile['waits']}" if profile else ""
        )
        return f"{text}  {busy}  {row.get('largest_difference_of_a_loss', '')}  {row['said']}"
    return (
        f"{text}  first event after {row['before_the_first_event']:.1f} s, {row['whole']:.0f} s in all  {row['said']}"
    )


if __name__ == "__main__":
    main()
