"""The benchmark suite: measures the documents' tables on this machine, case by case.

The planner chooses the cases from what fits this machine, and predicts their times. Each case is a command in a process
of its own, so that a failed or killed one costs only itself. Its result is a file, and an interrupted suite continues
with the cases that have none.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.hardware.machine import Machine
from engine.models.catalogue import find_model
from engine.plan.planner import TierPlan, plan_context
from engine.plan.request import PlanRequest
from engine.quantities import format_bytes, format_seconds, format_timing
from engine.whole_file import replace_text

GIB = 2**30
MODELS = ("qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b", "qwen2.5-coder-7b")
GPU_CONTEXTS = (8_192, 32_768, 131_072, 262_144, 524_288, 1_048_576)
CPU_CONTEXTS = (1_024, 4_096, 8_192)
STEPS_A_CASE = 2
"""Steps per case: the first pins memory and plans kernels, the second is the figure."""
OVERHEAD_SECONDS = 30.0
"""Start-up, random weights and floors of a case, in addition to its steps."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One measurement of the suite."""

    name: str
    arguments: tuple[str, ...]
    "Arguments of `engine`."
    seconds: float
    "Predicted duration of the whole case."


def suite(machine: Machine, *, minutes: float) -> list[Case]:
    """Returns the cases that a machine can run, with streamed steps from short to long within the minutes."""
    fixed = [
        Case(name="profile", arguments=("profile", "--json"), seconds=90.0),
        Case(name="verify", arguments=("verify", "--json"), seconds=180.0),
        Case(name="packing", arguments=_packing(machine), seconds=120.0),
    ]
    left = 60 * minutes - sum(case.seconds for case in fixed)
    chosen = []
    for case in sorted(_streamed_cases(machine), key=lambda case: case.seconds):
        if case.seconds > left:
            break
        chosen.append(case)
        left -= case.seconds
    return [*fixed, *chosen]


def _packing(machine: Machine) -> tuple[str, ...]:
    if not machine.gpus:
        return ("bench", "packing", "--model", "demo", "--context", "1024", "--context", "4096", "--json")
    contexts = (4_096, 8_192, 16_384, 32_768)
    lengths = (part for context in contexts for part in ("--context", str(context)))
    return ("bench", "packing", "--model", MODELS[0], *lengths, "--json")


def _streamed_cases(machine: Machine) -> Iterator[Case]:
    on_gpu = bool(machine.gpus)
    for model in MODELS if on_gpu else ("demo",):
        for context in GPU_CONTEXTS if on_gpu else CPU_CONTEXTS:
            row = plan_context(PlanRequest.of(machine, find_model(model)).stepping("streamed"), context)
            if row.fits and row.layout.stream is not None:
                yield Case(
                    name=f"streaming-{model}-{context}",
                    arguments=(*_streaming(model, context, row), "--repeats", str(STEPS_A_CASE), "--json"),
                    seconds=OVERHEAD_SECONDS + (STEPS_A_CASE + 1) * row.step_seconds / row.windows_per_step,
                )


def _streaming(model: str, context: int, row: TierPlan) -> Iterator[str]:
    """Yields the planner's layout as options."""
    assert row.layout.stream is not None
    yield from ("bench", "streaming", "--model", model, "--context", str(context), "--precision", row.layout.precision)
    for name, value in dataclasses.asdict(row.layout.stream).items():
        yield from ("--plan", f"{name}={value}")


def run_suite(cases: list[Case], folder: Path, notify: Callable[[str], None]) -> None:
    """Runs the cases without a result, each in a child process, and writes folder/NAME.json.

    A failure is a result too: {"failed": the command's error}.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, case in enumerate(cases, 1):
        path = folder / f"{case.name}.json"
        if path.exists():
            notify(f"{number} of {len(cases)}  {case.name}: measured before")
            continue
        notify(f"{number} of {len(cases)}  {case.name}, about {format_seconds(case.seconds)}")
        began = time.monotonic()
        result = _measure(case)
        result |= {"command": "engine " + " ".join(case.arguments), "wall_seconds": time.monotonic() - began}
        replace_text(path, json.dumps(result, indent=1) + "\n")


def _measure(case: Case) -> dict[str, Any]:
    limit = 4 * case.seconds + 120
    command = [sys.executable, "-m", "engine", *case.arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {format_seconds(limit)}"}
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        lines = (done.stderr or done.stdout).strip().splitlines()
        return {"failed": lines[-1] if lines else f"exit status {done.returncode}"}
    return {"failed": found["message"]} if "error" in found else found


def suite_table(folder: Path) -> str:
    """Renders the results of a folder as Markdown: streamed steps, packing, proofs, failures."""
    results = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    steps = sorted(
        (r for r in results.values() if r.get("kind") == "streamed step"), key=lambda r: (r["model"], r["context"])
    )
    lines = [
        "| model, storage | context | a step | tokens/s | GPU peak | host | attention alone / step |",
        "|---|---|---|---|---|---|---|",
        *map(_step_row, steps),
    ]
    if rows := results.get("packing", {}).get("rows"):
        lines += ["", "| window | packed, targets/s | padded | gain |", "|---|---|---|---|"]
        for row in rows:
            packed, padded = row["packed_per_second"], row["padded_per_second"]
            lines.append(f"| {row['context']:,} | {packed:,.0f} | {padded:,.0f} | {packed / padded:.1f} |")
    if verdicts := results.get("verify", {}).get("verdicts"):
        counts = {word: sum(v["status"] == word for v in verdicts) for word in ("passed", "failed", "unavailable")}
        lines += ["", "Proofs: " + ", ".join(f"{count} {word}" for word, count in counts.items()) + "."]
    failures = [f"- {name}: {result['failed']}" for name, result in results.items() if "failed" in result]
    if failures:
        lines += ["", "Without a result:", "", *failures]
    return "\n".join(lines)


def _step_row(row: dict[str, Any]) -> str:
    seconds, floor = row["seconds"]["total"], row.get("attention_floor")
    cells = (
        f"{row['model']}, {row['precision']}",
        f"{row['context']:,}",
        format_timing(seconds),
        f"{row['context'] / seconds:,.0f}",
        format_bytes(row["gpu_peak_allocated"]) if "gpu_peak_allocated" in row else "–",
        format_bytes(row["host_rss_bytes"]),
        "–" if floor is None else f"{floor / seconds:.2f}",
    )
    return "| " + " | ".join(cells) + " |"
