"""`engine lr-range`: searches a learning rate for a repository and a model by an LR range test."""

from __future__ import annotations

import argparse
import json
from typing import Any

from engine.commands.output import print_json
from engine.commands.run_options import add_run_options, read_run_config

_RECIPE = "engine.recipes.lr_range:find_rate"
_ROWS = 15


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:  # noqa: ARG001
    """Adds the run's options; training.max_steps is the number of rates, 60 if unset."""
    add_run_options(parser)
    parser.add_argument("--json", action="store_true", help="One JSON document on standard output.")


def run(args: argparse.Namespace) -> int:
    """Runs the test in a separate process, and prints its result."""
    from engine.commands.train import follow
    from engine.launch import preflight
    from engine.launch.launcher import launch
    from engine.launch.signals import Interrupts
    from engine.optim.lr_range import FILE_NAME

    config = preflight.check(read_run_config(args))
    with Interrupts() as interrupts:
        handle = launch(config, recipe=_RECIPE)
        status = follow(handle, interrupts, as_json=False)
    if status:
        return status
    found = json.loads((handle.run.path / FILE_NAME).read_text(encoding="utf-8"))
    if args.json:
        print_json(found)
    else:
        _print(found)
    return 0


def _print(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False, emoji=False)
    table = Table("rate", "loss", "smoothed", box=None, header_style="bold", pad_edge=False)
    points = list(zip(found["rates"], found["losses"], found["smoothed"], strict=True))
    for rate, loss, smoothed in points[:: max(1, len(points) // _ROWS)]:
        table.add_row(f"{rate:.1e}", f"{loss:.4f}", f"{smoothed:.4f}")
    console.print(table)
    diverged = found["diverged_at"]
    end = f"lost again at {diverged:.1e}" if diverged else "the loss never turned up: the run was too short for this"
    console.print(f"suggested: --set training.learning_rate={found['suggested']:.1e} ({end})")
