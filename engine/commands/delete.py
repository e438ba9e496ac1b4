"""`engine delete`: permanently deletes a run that has ended."""

from __future__ import annotations

import argparse
import sys


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:  # noqa: ARG001 - one signature for all
    """Adds the options of `engine delete`."""
    parser.add_argument("reference", metavar="RUN", help="id, unique beginning of an id, or path of a run")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--json", action="store_true", help="print JSON on stdout")


def run(args: argparse.Namespace) -> int:
    """Asks for the end of the run's name, and deletes it.

    Raises:
        EliteError: RUN_UNKNOWN, RUN_AMBIGUOUS, RUN_DAMAGED, RUN_STILL_ACTIVE, or RUN_UNDELETABLE (also without a
            terminal and --yes).
    """
    from engine.commands.output import print_json
    from engine.errors import INTERRUPTED, one_line
    from engine.errors.runs import RUN_DELETION_UNCONFIRMED
    from engine.runs import run_index
    from engine.runs.deletion import delete_run

    found = run_index.find_run(args.reference)
    if not args.yes:
        if not sys.stdin.isatty():
            raise RUN_DELETION_UNCONFIRMED(run=found.id)
        word = found.id[-4:]
        words = f"{one_line(found.path)} is permanently deleted, with its checkpoints and its adapter."
        print(words, file=sys.stderr)  # noqa: T201
        if input(f"Type {word} to confirm: ").strip() != word:
            print("nothing was deleted", file=sys.stderr)  # noqa: T201
            return INTERRUPTED
    delete_run(found)
    if args.json:
        print_json({"deleted": found.id, "path": str(found.path)})
    print(f"deleted run {found.id}", file=sys.stderr)  # noqa: T201
    return 0
