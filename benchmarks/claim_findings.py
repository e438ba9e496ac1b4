"""What is known about each claim, from stored measurements and the planner, for benchmarks/claims.py."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.step_tables import streamed_steps

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
GIB = 2**30

NOT_YET = "not measured yet"

ORDERS = ("imports", "path", "files alone")
"""Of the files in a window, as benchmarks/long_context.py names them."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What is known about a claim. Every cell is filled."""

    measured: str
    how: str
    verdict: str


# --- stored measurements -------------------------------------------------------------------------------------


@cache
def stored(name: str) -> Any:
    """A result file's content; None where there is none yet."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def streamed(**wanted: Any) -> list[dict[str, Any]]:
    """Rows of full or partial streamed steps whose fields are as wanted, the most layers first."""
    rows = [row for row in streamed_steps() if all(row[name] == value for name, value in wanted.items())]
    return sorted(rows, key=lambda row: -row["layers"] / row["all_layers"])


def proof(optimization: str) -> Finding | None:
    """What `engine verify` recorded, on a GPU where it has run there."""
    for name in ("verify-h200", "verify-cpu"):
        for verdict in (stored(name) or {"verdicts": []})["verdicts"]:
            if verdict["id"] == optimization and verdict["status"] == "passed":
                card = stored(name)["machine"]["card"]
                where = "two processes on a processor" if shared_by_processes(optimization) else card or "a processor"
                return Finding(measured=verdict["evidence"], how=f"`engine verify {optimization}`, {where}", verdict="")
    return None


def shared_by_processes(optimization: str) -> bool:
    """Whether its proof starts processes, which compute on the processor also where a GPU is."""
    sys.path.insert(0, str(ROOT))
    from engine.plan.optimizations import optimizations

    (row,) = (row for row in optimizations() if row.id == optimization)
    return row.proof.startswith("engine.verify.distributed:")


def proven(optimization: str, verdict: str) -> Finding:
    """A proof on small models, with a verdict about the claim."""
    found = proof(optimization)
    if found is None:
        return Finding(measured=NOT_YET, how=f"`engine verify {optimization}`", verdict="open")
    return Finding(measured=found.measured, how=found.how, verdict=verdict)


def step_in_words(row: dict[str, Any]) -> str:
    layers = "all layers" if row["layers"] == row["all_layers"] else f"{row['layers']} of {row['all_layers']} layers"
    first = " (a first step, which pins memory)" if row["seconds"] == row["first_seconds"] else ""
    return (
        f"{row['model']}, {row['precision']}, {layers}, {row['context']:,} tokens: "
        f"{row['gpu_peak_allocated'] / GIB:.2f} GiB of GPU memory, {row['host_rss_bytes'] / GIB:.0f} GiB of RAM, "
        f"{row['seconds']['total']:.0f} s a step{first}"
    )


# --- contexts on cards ---------------------------------------------------------------------------------------


def context_under(cap: float, context: int, card: str) -> Finding:
    rows = [row for row in streamed(context=context) if row["vram_cap_gib"] == cap]
    how = "`engine bench streaming`, `python benchmarks/whole_rows_gpu.py`, "
    how += f"one H100 or H200 limited to {cap:g} GiB (docs/benchmarks.md)"
    if not rows:
        return Finding(measured=NOT_YET, how=how, verdict="open")
    full, partial = (
        [row["model"] for row in rows if (row["layers"] == row["all_layers"]) == whole] for whole in (True, False)
    )
    parts = "these layers; all of them add their 4-bit weights, 0.7 GiB; the full step is open"
    fits = f"true for GPU memory of {', '.join(dict.fromkeys(full))}" if full else f"true for {parts}"
    if full and partial:
        fits += f"; of {', '.join(dict.fromkeys(partial))} for {parts}"
    return Finding(
        measured="; ".join(map(step_in_words, rows)),
        how=how,
        verdict=f"{fits}; time on {card} itself is predicted (docs/tiers.md)",
    )


def ordinary_way() -> Finding:
    """The longest context of each way by the planner's sum, on the card that the announcement names."""
    sys.path.insert(0, str(ROOT))

    from engine.config import TrainingSection
    from engine.hardware.cards import find_card, simulate
    from engine.models.catalogue import find_model
    from engine.plan.planner import largest_context
    from engine.plan.request import PlanRequest

    machine = simulate(find_card("rtx-2060-super"), ram_bytes=64 * GIB, disk_bytes=500 * GIB)
    planning = PlanRequest.of(machine, find_model("qwen2.5-coder-1.5b"), training=TrainingSection(recompute="always"))
    whole, tiled = (largest_context(planning.stepping(way)) for way in ("whole", "streamed"))
    assert whole is not None
    assert tiled is not None
    factor = tiled.context / whole.context
    return Finding(
        measured=f"predicted: whole windows with gradient checkpointing reach {whole.context:,} tokens, streamed ones "
        f"{tiled.context:,}: {factor:.0f} times",
        how="`engine plan --hardware rtx-2060-super --max-context`, 1.5B in 4 bits, 64 GiB of RAM, 500 GiB of disk",
        verdict="true for memory, by a sum that was held against measurements; time grows with the square",
    )


def before_and_after() -> Finding:
    rows = [row for row in streamed(context=524_288) if row["vram_cap_gib"] == 7.25]
    how = "`engine bench streaming`, one H100 limited to 7.25 GiB"
    if not rows:
        return Finding(measured=NOT_YET, how=how, verdict="open")
    return Finding(
        measured=step_in_words(rows[0]),
        how=how,
        verdict="the context is true; 2.3 GB is not for this model: the CUDA context alone takes 0.8 GiB more",
    )


# --- techniques ----------------------------------------------------------------------------------------------


def four_bit_activations() -> Finding:
    return proven(
        "activation_4bit",
        "3.6 times smaller than 16 bits with their scales, not 4; the gradient is off by "
        "a third, so it is approximate and off by default",
    )


def across_gpus(case: str, **wanted: Any) -> list[dict[str, Any]]:
    """Rows of one case on two GPUs."""
    found = stored("distributed-h200") or {"rows": []}
    rows = [row for row in found["rows"] if row["case"] == case]
    return [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]


def power_sgd() -> Finding:
    found = across_gpus("gradients of every weight")
    if not found:
        return proven("powersgd", "the factor follows from rank and shape; 320 was not seen, and several GPUs are open")
    row = found[0]
    times = row["whole"]["bytes"] / row["powersgd r=1"]["bytes"]
    seconds = f"{row['powersgd r=1']['seconds'] * 1e3:.0f} ms against {row['whole']['seconds'] * 1e3:.0f} ms whole"
    return Finding(
        measured=f"{times:,.0f} times fewer bytes at rank 1 for every weight of one model; {seconds} over NVLink",
        how="`python benchmarks/distributed_gpu.py`, two H200",
        verdict="true in bytes at rank 1, approximate; over NVLink it saves no time, over slow links it does "
        "(docs/distributed.md)",
    )


def ring() -> Finding:
    rows = []
    for row in across_gpus("ring zigzag"):
        alone = across_gpus("alone", context=row["context"], layers=row["layers"])
        if alone:
            times = alone[0]["seconds"] / row["seconds"]
            rows.append(f"{row['context']:,} tokens, {row['layers']} layers: {times:.2f} times as fast as one")
    if not rows:
        return proven("ring_attention", "true for keys and values a GPU holds; speed on several GPUs is open")
    return Finding(
        measured="; ".join(rows),
        how="`python benchmarks/distributed_gpu.py`, two H200",
        verdict="exact; a rank holds its own share of the context and one other's, so memory shrinks with the ranks, "
        "and is not O(1)",
    )


def packing() -> Finding:
    found = stored("packing-cpu")
    best = max(found["rows"], key=lambda row: row["packed_per_second"] / row["padded_per_second"])
    rows = ", ".join(
        f"{row['packed_per_second'] / row['padded_per_second']:.1f} at {row['context']:,}" for row in found["rows"]
    )
    gain = best["packed_per_second"] / best["padded_per_second"]
    return Finding(
        measured=f"times as many tokens a second as padded rows: {rows}",
        how=f"`engine bench packing` over the standard library, {found['model']}, {found['card'] or 'one core'}",
        verdict=("true at long windows" if gain >= 5 else "not reached")
        + ": it is what padding wastes, which grows with the window and shrinks with longer documents",
    )


def fused_kernels() -> Finding:
    rows = {row["what"]: row for row in stored("ablation")["rows"] if row["context"] == 131_072}
    off, on = rows["without fused kernels"], next(row for what, row in rows.items() if what.startswith("baseline"))
    small = proof("fused_kernels")
    assert small is not None
    return Finding(
        measured=f"131,072 tokens: {on['tokens_per_second'] / off['tokens_per_second'] - 1:+.0%} tokens a second, "
        f"{(off['gpu_peak'] - on['gpu_peak']) / GIB:.2f} GiB less; 8,192 tokens: {small.measured}",
        how="`python benchmarks/ablation.py streamed --layers 7`, `engine verify fused_kernels`, one H200",
        verdict="the memory is true; the speed is true at short contexts, at long ones attention is the work",
    )


def convergence(kind: str, reference_kind: str, verdict: str) -> Finding:
    """The best rate of one kind of row against the best of another; a kind is how their names match."""
    rows = stored("convergence")["rows"]
    means = {name: sum(run["held_out_loss"] for run in runs) / len(runs) for name, runs in rows.items()}
    row, reference = (
        min((name for name in means if re.fullmatch(pattern, name)), key=means.__getitem__)
        for pattern in (kind, reference_kind)
    )
    return Finding(
        measured=f"held-out loss after equal tokens: {means[row]:.3f} ({row}) against "
        f"{means[reference]:.3f} ({reference})",
        how="`python benchmarks/convergence.py --repo . --seeds 2 --steps 60`, the embedded model, CPU",
        verdict=verdict,
    )


def compile_success() -> Finding:
    found = stored("packages")
    how = "`python benchmarks/packages.py`, the embedded model fine-tuned on each of these packages, which it never saw"
    if found is None:
        return Finding(measured=NOT_YET, how=how, verdict="open")
    said, best = [], 0.0
    for package in found["packages"]:
        (row,) = (
            mark
            for task in package["tasks"]
            for mark in task["rows"]
            if (task["task"], mark["name"]) == ("completion", "parses")
        )
        best = max(best, row["tuned"])
        said.append(f"{package['package']}: {row['base']:.0%} → {row['tuned']:.0%} of {row['functions']} functions")
    return Finding(
        measured="; ".join(said),
        how=how,
        verdict=("reached" if best >= 0.94 else "not reached")
        + " by a model of 13.5 million parameters; a larger one's rate is its own: `engine evaluate` measures it",
    )


def long_context(name: str, words: Callable[[dict[str, Any]], tuple[str, str]]) -> Finding:
    """What `words` makes of a stored experiment: the measured figures, and a verdict."""
    found = stored(name)
    if found is None:
        return Finding(measured=NOT_YET, how="`python benchmarks/long_context.py`", verdict="open")
    measured, verdict = words(found)
    packages = ", ".join(found["packages"])
    own = ", trained on four fifths of its files and scored on the others" if "--own" in found["command"] else ""
    how = (
        f"`python benchmarks/long_context.py`, the embedded model, equal arithmetic, {packages}{own}, {found['device']}"
    )
    return Finding(measured=measured, how=how, verdict=verdict)


def mean_perplexity(found: dict[str, Any], **wanted: Any) -> float:
    """Over all packages, each token the same."""
    rows = [row for row in found["rows"] if all(row[name] == value for name, value in wanted.items())]
    return math.exp(sum(row["loss"] * row["tokens"] for row in rows) / sum(row["tokens"] for row in rows))


def against_lora(found: dict[str, Any]) -> tuple[str, str]:
    windows = sorted({row["context"] for row in found["rows"]})
    usual = mean_perplexity(found, model="standard LoRA", order="files alone", context=windows[0])

    def best(model: str) -> tuple[float, int]:
        return min((mean_perplexity(found, model=model, order="imports", context=n), n) for n in windows)

    (standard, _), (ours, long) = best("standard LoRA"), best("our recipe")
    return (
        f"standard LoRA {usual:.2f} scored on single files in windows of {windows[0]:,}; on repositories in windows of "
        f"{long:,} standard LoRA {standard:.2f}, our recipe {ours:.2f}",
        f"{1 - ours / usual:.0%} better than the usual way, and "
        + ("better" if ours < standard else "worse")
        + f" than standard LoRA in the same windows by {abs(1 - ours / standard):.0%}: the window is what helps",
    )


def by_window(found: dict[str, Any]) -> tuple[str, str]:
    windows = sorted({row["context"] for row in found["rows"]})
    scored = [order for order in ORDERS if any(row["order"] == order for row in found["rows"])]
    said = {order: [mean_perplexity(found, model="base", order=order, context=n) for n in windows] for order in scored}
    rows = "; ".join(f"{order}: " + ", ".join(f"{value:.3f}" for value in values) for order, values in said.items())
    ordered, alone = said["imports"], said["files alone"]
    gain = 1 - min(ordered) / alone[0]
    return (
        f"perplexity of the base model at windows of {', '.join(f'{n:,}' for n in windows)}: {rows}",
        f"a repository in one window is predicted {gain:.0%} better than its files alone; best at windows of "
        f"{windows[ordered.index(min(ordered))]:,} (the model was trained up to 8,192 tokens)",
    )


def paged_kv() -> Finding:
    """The same model and tiles with keys and values in either place."""
    cases = [case for case in stored("memory-h100")["cases"] if case["plan"] and case["context"] == 131_072]
    cases = [case for case in cases if case["model"].endswith("0.5b") and case["plan"]["tile"] == 8192]
    there = min(case["gpu_peak_allocated"] for case in cases if case["plan"]["kv_home"] == "gpu")
    away = min(case["gpu_peak_allocated"] for case in cases if case["plan"]["kv_home"] == "host")
    return Finding(
        measured=f"0.5B, two layers, 131,072 tokens: {there / GIB:.2f} GiB with keys and values on the GPU, "
        f"{away / GIB:.2f} GiB with them on the host",
        how="`python benchmarks/memory_gpu.py`, one H100",
        verdict="true in kind: GPU memory stops growing with the context; how much it saves depends on the length",
    )


def epoch_hours() -> Finding:
    found = stored("short-context-h200")
    how = "`python benchmarks/short_context_gpu.py`, 1.5B NF4, rank 16, activations kept, one H200"
    if found is None:
        return Finding(
            measured=NOT_YET + " in a form that is stored",
            how=how,
            verdict="open: hours an epoch depend on repository and card; only ratios can be compared",
        )
    speeds: dict[str, dict[tuple[int, int], float]] = {}
    for row in (row for row in found if "seconds" in row):
        speeds.setdefault(row["way"], {})[row["row"], row["tokens"]] = row["tokens"] / row["seconds"]
    said, ours = [], speeds["streamed, activations kept"]
    for rival in (way for way in speeds if way.startswith("transformers")):
        rows = ", ".join(
            f"{ours[case] / speed:.1f} times at rows of {case[0]:,} and {case[1]:,} tokens an update"
            for case, speed in speeds[rival].items()
            if case in ours
        )
        said.append(f"as fast as {rival}: {rows}")
    return Finding(
        measured="; ".join(said),
        how=how,
        verdict="hours an epoch depend on repository and card; the ratio is what can be compared",
    )


def count_of_optimizations() -> Finding:
    verdicts = stored("verify-cpu")["verdicts"]
    passed = sum(verdict["status"] == "passed" for verdict in verdicts)
    gpu = stored("verify-h200")
    more = ""
    if gpu is not None:
        more = f"; {sum(v['status'] == 'passed' for v in gpu['verdicts'])} of {len(gpu['verdicts'])} on an H200"
    return Finding(
        measured=f"{passed} of {len(verdicts)} proofs pass on a processor (the rest need a GPU){more}",
        how="`engine verify` (docs/optimizations.md)",
        verdict="true in number; several are approximate and off unless asked for, and some help nobody by default",
    )


def profiling_time() -> Finding:
    found = stored("profile-h200")
    if found is None:
        return Finding(measured="about 1 minute on four CPU cores", how="`engine profile`", verdict="open on a GPU")
    return Finding(
        measured=f"{found['seconds']:.0f} s", how="`engine profile --json`, one H200", verdict="true: less than claimed"
    )


def recovery() -> Finding:
    found = stored("chaos")
    kills = sum(row.get("kills", 0) for row in found["scenarios"])
    lost = [row["lost"] for row in found["scenarios"] if row["lost"]]
    return Finding(
        measured=f"{kills} kills, full disks, damaged files: {', '.join(lost) if lost else 'nothing lost or damaged'}",
        how="`make chaos` (docs/reliability.md)",
        verdict="true on a CPU; faults of a GPU are open",
    )
