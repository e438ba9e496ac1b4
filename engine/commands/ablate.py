"""`engine ablate`: real runs with each optimisation on and off, on a given repository and model."""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine import config as run_config
from engine.commands.option_values import whole_number
from engine.commands.output import print_json
from engine.commands.run_options import add_run_options, read_run_mapping
from engine.errors import TRAINING_FAILED
from engine.quantities import format_bytes, format_seconds

if TYPE_CHECKING:
    from engine.config import RunConfig
    from engine.evaluation.ablation import Outcome

DEFAULT_STEPS = 20


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:  # noqa: ARG001
    """Adds the options of `engine ablate`."""
    parser.add_argument("ids", nargs="*", metavar="ID", help="Optimisations to vary; all that can act here by default.")
    add_run_options(parser)
    parser.add_argument("--seeds", type=whole_number(1, 20), default=1, metavar="N", help="Runs of each, 1 to 20.")
    parser.add_argument(
        "--evaluations", type=whole_number(1, 100), default=4, metavar="N", help="Held-out scores within a run."
    )
    parser.add_argument("--list", action="store_true", help="Name the runs that would be made, and make none.")
    parser.add_argument("--json", action="store_true", help="One JSON document on standard output.")


def run(args: argparse.Namespace) -> int:
    """Runs the baseline and one variation for each optimisation, and prints the table."""
    from engine.evaluation.ablation import measure_all, variations
    from engine.hardware.inventory import take_inventory
    from engine.launch import preflight
    from engine.models.catalogue import find_model

    baseline = preflight.check(_baseline(args))
    machine = take_inventory(Path(baseline.output.directory))
    todo = list(variations(baseline, machine, find_model(baseline.model.name), args.ids, args.seeds))
    if args.list:
        for variation in todo:
            print(f"{variation.id} {'on' if variation.on else 'off'}, seed {variation.seed}")  # noqa: T201
        return 0
    outcomes = measure_all(todo, _notify)
    rows = summarise(outcomes)
    if args.json:
        print_json({"baseline": run_config.to_mapping(baseline), "rows": rows, "runs": _plain(outcomes)})
    else:
        _print(rows)
    return TRAINING_FAILED if any(outcome.problem for outcome in outcomes) else 0


def _baseline(args: argparse.Namespace) -> RunConfig:
    data = read_run_mapping(args)
    training = data.setdefault("training", {})
    steps = training.setdefault("max_steps", DEFAULT_STEPS)
    if isinstance(steps, int):
        training.setdefault("evaluate_every", max(1, steps // args.evaluations))
    return run_config.from_mapping(data, source=str(args.config or "command line"))


def _notify(number: int, total: int, outcome: Outcome) -> None:
    loss = "failed: " + outcome.problem if outcome.problem else f"held-out loss {outcome.held_out_loss:.4f}"
    state = "on" if outcome.on else "off"
    text = f"{number}/{total} {outcome.id} {state} (seed {outcome.seed}, {format_seconds(outcome.seconds)}): {loss}"
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def _plain(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(outcome) for outcome in outcomes]


def summarise(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Summarises one row per optimisation, the baseline first: means over seeds, compared at equal seeds.

    `tokens_to_baseline` is the share of the baseline's tokens at which the baseline's final loss was reached, averaged
    over the seeds that reached it; `reached` is their number.
    """
    from engine.evaluation.ablation import tokens_to_reach

    bases = {outcome.seed: outcome for outcome in outcomes if outcome.id == "baseline"}
    rows = []
    for name in dict.fromkeys(outcome.id for outcome in outcomes):
        runs = [outcome for outcome in outcomes if outcome.id == name]
        worked = [outcome for outcome in runs if not outcome.problem and outcome.held_out_loss is not None]
        pairs = [(outcome, bases[outcome.seed]) for outcome in worked if not bases[outcome.seed].problem]
        differences = [o.held_out_loss - b.held_out_loss for o, b in pairs if o.held_out_loss and b.held_out_loss]
        shares = [
            reached / base.tokens
            for outcome, base in pairs
            if base.held_out_loss is not None
            and (reached := tokens_to_reach(outcome.curve, base.curve[-1][1])) is not None
        ]
        rows.append(
            {
                "id": name,
                "on": runs[0].on,
                "seeds": len(worked),
                "held_out_loss": _mean([o.held_out_loss for o in worked]),
                "loss_difference": _mean(differences),
                "loss_difference_deviation": statistics.stdev(differences) if len(differences) > 1 else None,
                "tokens_to_baseline": _mean(shares),
                "reached": len(shares),
                "tokens_per_second": _mean([o.tokens_per_second for o in worked]),
                "gpu_peak": max((o.gpu_peak for o in worked if o.gpu_peak), default=None),
                "host_peak": max((o.host_peak for o in worked if o.host_peak), default=None),
                "problem": next((o.problem for o in runs if o.problem), ""),
            }
        )
    return rows


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _print(rows: Sequence[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("optimisation", no_wrap=True)
    for title in ("", "held-out loss", "against baseline", "tokens/s", "GPU peak", "RAM peak"):
        table.add_column(title, justify="right")
    for row in rows:
        if row["problem"]:
            table.add_row(row["id"], "on" if row["on"] else "off", "failed:", row["problem"], style="red")
            continue
        table.add_row(
            row["id"],
            "" if row["id"] == "baseline" else "on" if row["on"] else "off",
            f"{row['held_out_loss']:.4f}",
            "" if row["id"] == "baseline" else f"{row['loss_difference']:+.4f}",
            "n/a" if row["tokens_per_second"] is None else f"{row['tokens_per_second']:,.0f}",
            "n/a" if row["gpu_peak"] is None else format_bytes(row["gpu_peak"]),
            "n/a" if row["host_peak"] is None else format_bytes(row["host_peak"]),
        )
    Console(markup=False, highlight=False, emoji=False).print(table)
