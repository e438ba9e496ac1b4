"""`engine doctor`: checks everything that a run needs before it starts.

The rows come from `engine.launch.doctor.examine(config)`, an iterator of Check(name, status, text, remedy). `NAMES`
there lists every row in order, for a screen that shows them before their results. `--json` prints a list of the same
four fields.
"""

from __future__ import annotations

import argparse
import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING

from engine.errors import DOES_NOT_FIT, one_line
from engine.quantities import counted

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from engine.launch.doctor import Check

_SIGNS = {"passed": ("✓", "green"), "warning": ("!", "yellow"), "failed": ("✗", "red"), "skipped": ("·", "dim")}
_NARROWEST = 20
"Columns of a row's text; with less, the terminal breaks its lines."


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:  # noqa: ARG001 - one signature for all
    """Adds the configuration options of `engine train`, and the command's own."""
    from engine.commands.train import add_config_arguments

    add_config_arguments(parser)
    parser.add_argument("--quick", action="store_true", help="Leave out what needs torch and takes seconds")
    parser.add_argument("--json", action="store_true", help="Print a JSON list on stdout")


def run(args: argparse.Namespace) -> int:
    """Prints the rows as they complete; returns 3 if any failed."""
    from engine.commands.output import print_json
    from engine.commands.train import read_config
    from engine.launch.doctor import examine, failed

    rows: list[Check] = []
    console = None if args.json else _console()
    for row in examine(read_config(args), probe=not args.quick):
        rows.append(row)
        if console is not None:
            _show(console, row)
    if args.json:
        print_json([asdict(row) for row in rows])
    elif console is not None:
        _conclude(console, rows, quick=args.quick)
    return DOES_NOT_FIT if failed(rows) else 0


def _console() -> Console:
    from rich.console import Console

    return Console(markup=False, highlight=False, emoji=False)


def _show(console: Console, row: Check) -> None:
    from rich.text import Text

    sign, style = _SIGNS[row.status]
    head = Text.assemble((f"{sign} ", style), (f"{row.name:<23} ", "bold"))
    _hang(console, head, Text(one_line(row.text)))
    if row.remedy:
        _hang(console, Text(f"{'':26}→ ", style=style), Text(one_line(row.remedy), style=style))


def _hang(console: Console, head: Text, text: Text) -> None:
    """Prints a text behind its head, on a terminal with all its lines below the first; else on one line."""
    from rich.text import Text

    room = console.width - head.cell_len
    lines = [text.plain]
    if console.is_terminal and room >= _NARROWEST:  # a path stays whole, to be copied
        lines = textwrap.wrap(text.plain, room, break_long_words=False, break_on_hyphens=False) or lines
    for number, line in enumerate(lines):
        console.print((Text(" " * head.cell_len) if number else head) + Text(line, style=text.style), soft_wrap=True)


def _conclude(console: Console, rows: list[Check], *, quick: bool) -> None:
    count = {status: sum(row.status == status for row in rows) for status in _SIGNS}
    if count["failed"]:
        console.print(
            f"{count['failed']} of {counted(len(rows), 'check')} failed: a run would not get through", style="red"
        )
    else:
        warnings = f", {count['warning']} to know about" if count["warning"] else ""
        skipped = f"; {count['skipped']} left out" if count["skipped"] else ""
        ready = "nothing failed that --quick examines" if quick else "ready to train"
        console.print(f"{ready}{warnings}{skipped}")
