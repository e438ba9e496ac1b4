"""Schedules of eight hours and without a limit for five cards and three sizes of a repository, as runs plan them.

python benchmarks/schedules.py [--json OUT.json] [--hours H] [--model M]

Predictions, not measurements: times by data-sheet rates. Fails where a schedule has fewer than 30 updates although the
repository has tokens for them, or takes longer than its hours.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

from engine import __version__
from engine.hardware.cards import find_card, simulate
from engine.hardware.machine import GIB
from engine.models.catalogue import find_model
from engine.plan.planner import tier_table
from engine.plan.request import PlanRequest
from engine.plan.schedule import make_schedule
from engine.plan.tiers import LEAST_UPDATES

CARDS = ("rtx-2060-super", "rtx-3060-12gb", "rtx-4090", "a100-80gb", "h200")
TOKENS = (40_000, 400_000, 7_000_000)
FEWEST_TOKENS = 512
"""Of an update, where a repository or the hours allow too few larger ones."""


def rows(model: str, hours: float) -> list[dict]:
    found = []
    for name in CARDS:
        machine = simulate(find_card(name), ram_bytes=64 * GIB, disk_bytes=500 * GIB)
        for tokens in TOKENS:
            planning = PlanRequest.of(machine, find_model(model), repository_tokens=tokens)
            table = tier_table(planning)
            schedule = make_schedule(planning, hours)
            ceiling = table.row(table.ceiling or 1)
            found.append(
                {
                    "card": name,
                    "repository_tokens": tokens,
                    "schedule": shortened(schedule.as_json()),
                    "unlimited": shortened(make_schedule(planning, None).as_json()),
                    "ceiling": {
                        "tier": ceiling.tier,
                        "context": ceiling.context,
                        "updates_an_epoch": ceiling.steps_per_epoch,
                        "step_seconds": ceiling.step_seconds,
                    },
                }
            )
    return found


def shortened(schedule: dict) -> dict:
    """The schedule without formulas and step layouts."""
    stages = [{key: value for key, value in stage.items() if key != "layout"} for stage in schedule["stages"]]
    around = {part["name"]: part["seconds"] for part in schedule["around"]}
    return {**schedule, "stages": stages, "around": around}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--hours", type=float, default=8.0)
    parser.add_argument("--model", default="qwen2.5-coder-1.5b")
    args = parser.parse_args()
    found = rows(args.model, args.hours)
    status = 0
    for row in found:
        schedule = row["schedule"]
        stages = ", ".join(f"{stage['updates']} × {stage['context']:,}" for stage in schedule["stages"])
        print(
            f"{row['card']:15} {row['repository_tokens']:>9,} tokens: {schedule['updates']:>5} updates ({stages}), "
            f"{schedule['epochs']:.1f} epochs, {schedule['seconds'] / 3600:.2f} h; {schedule['note']}"
        )
        enough = row["repository_tokens"] > LEAST_UPDATES * FEWEST_TOKENS
        fewest = min(schedule["updates"], row["unlimited"]["updates"])
        if schedule["seconds"] > args.hours * 3600 or (enough and fewest < LEAST_UPDATES):
            print("  breaks its promise", file=sys.stderr)
            status = 1
    if args.json:
        document = {
            "command": f"python {shlex.join(sys.argv)}",
            "engine": __version__,
            "model": args.model,
            "hours": args.hours,
            "ram_gib": 64,
            "disk_gib": 500,
            "rows": found,
        }
        args.json.write_text(json.dumps(document, indent=1) + "\n")
    return status


if __name__ == "__main__":
    raise SystemExit(main())
