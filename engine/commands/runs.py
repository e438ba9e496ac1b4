"""`engine runs`: prints the table of runs, or one line of them for a status bar."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import one_line

if TYPE_CHECKING:
    from rich.table import Table

    from engine.runs.run_summary import RunSummary


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:  # noqa: ARG001 - one signature for all
    """Adds the options of `engine runs`."""
    parser.add_argument("--output", metavar="DIR", type=Path, help="only the runs below this output folder")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--watch", action="store_true", help="one line that is kept up to date, for a status bar")
    shape.add_argument("--glance", action="store_true", help="the same line once, as tmux's status-right calls it")
    parser.add_argument(
        "--json", action="store_true", help="print a JSON list on stdout; with --watch or --glance an object a line"
    )


def run(args: argparse.Namespace) -> int:
    """Prints the table."""
    from engine.commands.output import print_json
    from engine.runs import run_index

    if args.watch or args.glance:
        from engine.commands import glance

        show = glance.watch if args.watch else glance.show_once
        show(args.output, as_json=args.json)
        return 0
    summaries = run_index.list_runs(args.output)
    if args.json:
        print_json([asdict(summary) | {"path": str(summary.path)} for summary in summaries])
        return 0
    from rich.console import Console

    console = Console()
    if summaries:
        console.print(_table(summaries))
    elif args.output is None:
        console.print("no runs yet; `engine train --repo DIR` starts one", highlight=False)
    else:
        text = f"no runs in {one_line(args.output)}; without --output, those of every folder are listed"
        console.print(text, highlight=False, markup=False, soft_wrap=True)
    return 0


def _table(summaries: list[RunSummary]) -> Table:
    from rich.table import Table
    from rich.text import Text

    from engine.errors import one_line

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("run", overflow="fold")
    for title in ("status", "model"):
        table.add_column(title, no_wrap=True)
    for title in ("step", "loss", "perplexity"):
        table.add_column(title, justify="right", no_wrap=True)
    for summary in summaries:
        steps = f"{summary.step}/{'?' if summary.total_steps is None else summary.total_steps}"
        change = f"{_number(summary.perplexity_before)} → {_number(summary.perplexity_after)}"
        cells = (summary.id, summary.status, summary.model, steps, _number(summary.loss), change)
        table.add_row(*(Text(one_line(cell)) for cell in cells))
    return table


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.2f}"
