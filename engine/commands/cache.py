"""`engine cache`: lists and removes the 4-bit copies of models."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from engine.quantities import format_bytes

if TYPE_CHECKING:
    from engine.models.kept_copies import KeptCopy

ALL = "all"


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:  # noqa: ARG001 - one signature for all
    """Adds the options of `engine cache`."""
    parser.add_argument(
        "--remove",
        metavar="COPY",
        action="append",
        default=[],
        help=f"remove a copy, by the beginning of its name, or {ALL}; a run makes it again when it needs it",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list of the copies that are left on stdout")


def run(args: argparse.Namespace) -> int:
    """Removes what is named, and prints the rest.

    Raises:
        EliteError: COPY_UNKNOWN, COPY_IN_USE.
    """
    from dataclasses import asdict

    from engine.commands.output import print_json
    from engine.models.kept_copies import kept_copies, user_cache

    for copy in _named(kept_copies(), args.remove):
        _remove(copy)
    left = kept_copies()
    if args.json:
        print_json([asdict(copy) | {"path": str(copy.path)} for copy in left])
        return 0
    _print(left, user_cache())
    return 0


def _named(copies: list[KeptCopy], names: list[str]) -> list[KeptCopy]:
    from engine.errors.model import COPY_UNKNOWN

    if ALL in names:
        return copies
    found = []
    for name in names:
        matching = [copy for copy in copies if name and copy.path.name.startswith(name)]
        if len(matching) != 1:
            problem = f"{len(matching)} copies are" if matching else "no copy is"
            raise COPY_UNKNOWN(name=name or "''", problem=problem)
        found += matching
    return found


def _remove(copy: KeptCopy) -> None:
    from engine.errors.model import COPY_IN_USE
    from engine.models.kept_copies import remove_copy

    if not remove_copy(copy.path):
        raise COPY_IN_USE(path=copy.path)
    print(f"removed {copy.path.name} ({format_bytes(copy.size)})", file=sys.stderr)  # noqa: T201


def _print(copies: list[KeptCopy], folder: Path) -> None:
    import time

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from engine.errors import one_line

    console = Console()
    if not copies:
        console.print(f"no 4-bit copies in {one_line(folder)}", highlight=False, markup=False)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("copy", no_wrap=True)
    for title in ("size", "last used"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("model", overflow="fold")
    for copy in copies:
        used = time.strftime("%Y-%m-%d", time.localtime(copy.used))
        model = one_line(copy.model) or "(unfinished or damaged)"
        table.add_row(*(Text(cell) for cell in (copy.path.name[:12], format_bytes(copy.size), used, model)))
    console.print(table)
