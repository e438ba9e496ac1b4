"""`engine evaluate`: compares the tuned model with the base model, with confidence intervals."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine import config as run_config
from engine.commands.output import print_json
from engine.commands.quiet_libraries import libraries_logged
from engine.commands.status_line import status_line
from engine.launch.recipe_import import collector_at_rest
from engine.quantities import format_seconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from engine.config import RunConfig
    from engine.evaluation.result import Evaluation
    from engine.runs.run_directory import RunDirectory

_WIDTH = 120
_LEAST_NAME = 12
"Columns of the names of rows."
_TITLES = ("", "base", "tuned", "difference", "95% interval")
_FLAGS = {
    "--tokens": "evaluation.tokens",
    "--functions": "evaluation.functions",
    "--lines": "evaluation.lines",
    "--temperature": "evaluation.temperature",
    "--top-p": "evaluation.top_p",
}
_LETTERS = {"--temperature": "T", "--top-p": "P"}


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:  # noqa: ARG001
    """Adds the options of `engine evaluate`."""
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="RUN|DIRECTORY",
        help="Runs by id, by the beginning of one, or by their folder; the newest if none is named.",
    )
    parser.add_argument(
        "--repo",
        action="append",
        default=[],
        type=Path,
        metavar="DIR",
        help="Score on all files of this folder instead of the held-out ones; several are scored one after the other.",
    )
    for flag, path in _FLAGS.items():
        description = run_config.field_spec(path).description
        parser.add_argument(flag, dest=path, metavar=_LETTERS.get(flag, "N"), help=description)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="One field of the run's configuration."
    )
    parser.add_argument("--json", action="store_true", help="One JSON document on standard output.")


def run(args: argparse.Namespace) -> int:
    """Evaluates each run; results on its own files are saved in its folder, with its report."""
    from rich.console import Console

    from engine.runs.run_index import find_run

    runs = [find_run(reference) for reference in args.runs or [None]]
    configs = [_config_of(found, args) for found in runs]
    evaluations: list[Evaluation] = []
    for found, config in zip(runs, configs, strict=True):
        with libraries_logged(found.log_path) as terminal:
            console = Console(file=terminal.err, markup=False, highlight=False, emoji=False)
            evaluations += _evaluate(found, config, args.repo, console)
    if args.json:
        documents = [evaluation.as_json() for evaluation in evaluations]
        print_json(documents[0] if len(documents) == 1 else {"evaluations": documents})
    else:
        _print(evaluations)
    return 0


def _config_of(found: RunDirectory, args: argparse.Namespace) -> RunConfig:
    data: dict[str, Any] = run_config.to_mapping(found.load_config())
    texts = [f"{path}={value}" for path in _FLAGS.values() if (value := getattr(args, path)) is not None]
    for text in (*texts, *args.set):
        run_config.apply_override(data, text)
    return run_config.from_mapping(data, source="command line")


def _evaluate(
    found: RunDirectory, config: RunConfig, repositories: Sequence[Path], console: Console
) -> list[Evaluation]:
    from engine.errors import one_line

    with collector_at_rest():
        from engine.evaluation.evaluate_run import evaluate_run
        from engine.evaluation.result_files import keep_evaluation, rewrite_report

    evaluations = []
    with status_line(console, f"{one_line(found.id)}: loading") as update:
        message = ""

        def progress(done: int, total: int, what: str) -> None:
            nonlocal message
            update(f"{one_line(found.id)}: {done:,} of {total:,} {what}")
            if not console.is_terminal and what != message:
                message = what
                console.print(f"{total:,} {what}")

        for evaluation, dataset in evaluate_run(
            found, config, config.evaluation, repositories=repositories, progress=progress, notify=console.print
        ):
            evaluations.append(evaluation)
            if not repositories:
                keep_evaluation(found, evaluation)
                if rewrite_report(found, config, evaluation, dataset.summary):
                    console.print(f"written: {one_line(found.report_path)}", soft_wrap=True)
    return evaluations


def _print(evaluations: Sequence[Evaluation]) -> None:
    from rich.cells import cell_len
    from rich.console import Console

    from engine.errors import one_line
    from engine.evaluation.words import figure_sections

    # Files and pipes have no width, so set one.
    width = None if sys.stdout.isatty() else _WIDTH
    console = Console(markup=False, highlight=False, emoji=False, width=width)
    for evaluation in evaluations:
        scored = f"{evaluation.tokens:,} tokens of {evaluation.files:,} files ({one_line(evaluation.data)})"
        name = f"{one_line(evaluation.run)}: {one_line(evaluation.model)}"
        console.print(f"{name}, {scored}, {format_seconds(evaluation.seconds)} on {evaluation.device}", soft_wrap=True)
        sections = list(figure_sections(evaluation))
        # Without the last column, which the headings tell, since a row must fit 80 columns.
        lines = [_TITLES, *((f"  {row[0]}", *row[1:5]) for _, rows in sections for row in rows)]
        widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
        # Figures are never broken; a terminal that is too narrow breaks names.
        widths[0] = max(_LEAST_NAME, min(widths[0], console.width - sum(widths[1:]) - 2 * len(widths[1:])))
        _print_lines(console, [_TITLES], widths, "bold")
        for heading, rows in sections:
            console.print(one_line(heading), style="bold", soft_wrap=True)
            _print_lines(console, [(f"  {one_line(row[0])}", *row[1:5]) for row in rows], widths)
        for note in evaluation.notes:
            console.print(f"! {one_line(note)}")


def _print_lines(console: Console, lines: Sequence[Sequence[str]], widths: Sequence[int], style: str = "") -> None:
    """Prints lines of a table whose columns are as wide as those of its other sections."""
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1))
    for number, width in enumerate(widths):
        table.add_column(justify="right" if number else "left", width=width, no_wrap=number > 0)
    for line in lines:
        table.add_row(*line, style=style)
    console.print(table)
