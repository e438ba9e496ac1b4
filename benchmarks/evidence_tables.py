"""Sums up the runs of benchmarks/evidence_gpu.py: a row a variant, the marks of all packages, and both as text."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from typing import Any


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a variant: the change of held-out perplexity, and how far from `growing` on the same package and seed."""
    import numpy as np

    from engine.evaluation.intervals import mean_interval

    done = {(row["package"], row["variant"], row["seed"]): row for row in rows if "problem" not in row}
    change = {key: math.log1p(row["perplexity"]["change"]) for key, row in done.items()}
    found = []
    for variant in dict.fromkeys(row["variant"] for row in rows):
        mine = [key for key in done if key[1] == variant]
        paired = [
            change[key] - change[key[0], "growing", key[2]] for key in mine if (key[0], "growing", key[2]) in done
        ]
        interval = mean_interval(np.array(paired)) if paired else None
        found.append(
            {
                "variant": variant,
                "runs": len(mine),
                "failed": sum(row["variant"] == variant and "problem" in row for row in rows),
                "updates": statistics.median(done[key]["updates"] for key in mine) if mine else None,
                "update_seconds": statistics.mean(done[key]["update_seconds"] for key in mine) if mine else None,
                "change": math.expm1(statistics.mean(change[key] for key in mine)) if mine else None,
                "against_growing": math.expm1(statistics.mean(paired)) if paired else None,
                "interval": None if interval is None else [math.expm1(interval.low), math.expm1(interval.high)],
            }
        )
    return found


def together(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Marks of all packages' completions together: each arm beside the base model on the same requests."""
    import numpy as np

    from engine.evaluation.intervals import mean_interval, paired_shares

    base: dict[str, list[Any]] = defaultdict(list)
    arms: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for row in rows:
        for task in row.get("tasks", ()):
            if "marks" not in task:
                continue
            arm = task["arm"].removeprefix("adapter")
            if not arm:
                base[task["task"]] += task["base_marks"]
            else:
                arms[task["task"], f"base{arm}"] += task["base_marks"]
            arms[task["task"], task["arm"]] += task["marks"]
    found = []
    for (task, arm), marks in arms.items():
        for place, name in enumerate(("parses", "exact", "edit similarity")):
            pairs = np.array([(b[place], a[place]) for b, a in zip(base[task], marks, strict=True)], dtype=np.float64)
            difference = pairs[:, 1] - pairs[:, 0]
            up, down = int((difference > 0).sum()), int((difference < 0).sum())
            interval = paired_shares(up, down, len(pairs)) if place < 2 else mean_interval(difference)
            found.append(
                {
                    "task": task,
                    "arm": arm,
                    "mark": name,
                    "requests": len(pairs),
                    "base": float(pairs[:, 0].mean()),
                    "value": float(pairs[:, 1].mean()),
                    "interval": None if interval is None else [interval.low, interval.high],
                }
            )
    return found


def print_tables(document: dict[str, Any]) -> None:
    """Prints what won, and by how much."""
    print(f"{'variant':18} runs updates  seconds  perplexity  against growing")
    for row in document["variants"]:
        if row["change"] is None:
            print(f"{row['variant']:18} none: {row['failed']} failed")
            continue
        apart = "" if row["interval"] is None else f"{row['interval'][0]:+.1%} to {row['interval'][1]:+.1%}"
        against = "" if row["against_growing"] is None else f"{row['against_growing']:+.1%}"
        print(f"{row['variant']:18} {row['runs']:>4} {row['updates']:>7.0f} {row['update_seconds']:>8.1f} "
              f"{row['change']:>+11.1%}  {against} ({apart})")  # fmt: skip
    print("\npackage: perplexity before, after, change; seconds predicted, taken")
    for row in document["runs"]:
        if row["variant"] == "growing" and row["seed"] == 0 and "problem" not in row:
            found = row["perplexity"]
            ends = found["change_interval"]
            between = f"{ends['low']:+.1%} to {ends['high']:+.1%}" if ends else "too few files"
            print(f"{row['package']:14} {found['base']:.3f} {found['tuned']:.3f} {found['change']:+.1%} "
                  f"({between}); {row['predicted_seconds']:.0f} {row['seconds']:.0f}; "
                  f"a step {row['predicted_step_seconds']:.3f} {row['update_seconds'] / row['updates']:.3f}; "
                  f"{row['stages']}")  # fmt: skip
        for task in row.get("guessed", ()):
            for mark in task["rows"]:
                ends = mark["difference_interval"] or {"low": math.nan, "high": math.nan}
                before_after = f"{mark['base']:.1%} -> {mark['tuned']:.1%}"
                between = f"{ends['low']:+.1%} to {ends['high']:+.1%}"
                print(f"{row['package']:14} seed {row['seed']} {task['task']:10} {mark['name']:12} {before_after} "
                      f"({between}), {mark['functions']}")  # fmt: skip
    for row in document["marks"]:
        ends = row["interval"] or (math.nan, math.nan)
        print(f"{row['task']:12} {row['mark']:16} {row['arm']:20} {row['base']:.1%} -> {row['value']:.1%} "
              f"({ends[0]:+.1%} to {ends[1]:+.1%}), {row['requests']}")  # fmt: skip
    problems = sorted({row["problem"] for row in document["runs"] if "problem" in row})
    if problems:
        print("not run:", "; ".join(problems))
