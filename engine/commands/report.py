"""`engine report`: collects what a problem report needs, shows it, and writes it where the user agrees."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.runs.run_directory import RunDirectory


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:  # noqa: ARG001 - one signature for all
    """Adds the options of `engine report`."""
    parser.add_argument(
        "reference",
        nargs="?",
        metavar="RUN",
        help="id, unique beginning of an id, or path of the run that the report is about; without it, the newest",
    )
    parser.add_argument("--config", metavar="FILE", type=Path, help="examine this configuration, not the run's")
    parser.add_argument("--quick", action="store_true", help="leave out doctor's trial process, which takes seconds")
    parser.add_argument("--output", metavar="FILE", type=Path, help="write the report to this new file, without asking")
    parser.add_argument("--yes", action="store_true", help="write it to a new file of this folder, without asking")
    parser.add_argument("--json", action="store_true", help="print JSON on stdout, and do not ask")


def run(args: argparse.Namespace) -> int:
    """Shows the report, and writes it where the user agrees or an option says so.

    Raises:
        EliteError: RUN_UNKNOWN, RUN_AMBIGUOUS or REPORT_UNWRITABLE.
    """
    from engine.commands.output import print_json
    from engine.launch.problem_report import collect, to_markdown

    about = _find(args.reference)
    if not args.quick:
        _say("collecting; doctor's trial step takes some seconds (--quick leaves it out)")
    sections = collect(about, args.config, probe=not args.quick)
    text = to_markdown(sections)
    if not args.json:
        print(text, flush=True)  # noqa: T201
    target = args.output or Path(time.strftime("elite-tui-report-%Y%m%d-%H%M%S.md"))
    agreed = args.output is not None or args.yes or (not args.json and _agrees(target))
    if agreed:
        _write(target, text)
    if args.json:
        body = {section.title: section.text for section in sections}
        print_json({"report": body, "written": str(target.absolute()) if agreed else None})
    elif agreed:
        _say(f"written to {target}; read it before you hand it on")
    else:
        _say("nothing was written; --yes or --output FILE writes the report")
    return 0


def _find(reference: str | None) -> RunDirectory | None:
    """Finds the run, also one whose folder has no configuration left."""
    from engine.errors import EliteError
    from engine.errors.runs import RUN_DAMAGED, RUN_UNKNOWN
    from engine.runs import run_index
    from engine.runs.run_directory import RunDirectory

    if reference is None:
        runs = run_index.find_runs()
        return runs[0] if runs else None
    try:
        return run_index.find_run(reference)
    except EliteError as error:
        if error.kind not in (RUN_UNKNOWN, RUN_DAMAGED) or not reference or "\0" in reference:
            raise
        folders = [Path(reference), *(output / "runs" / reference for output in run_index.known_outputs())]
        for folder in folders:
            with contextlib.suppress(OSError):  # a name too long for a path
                if folder.is_dir():
                    return RunDirectory(folder.absolute())
        raise


def _agrees(target: Path) -> bool:
    from engine.errors import one_line

    if not sys.stdin.isatty():
        return False
    _say(f"Secrets and home folders are masked as far as they were found. Write this to {one_line(target)}? [y/N]")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _write(target: Path, text: str) -> None:
    from engine.errors.runs import REPORT_UNWRITABLE

    try:
        # A new file for its owner alone: no other file is written over, no link followed.
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
    except (OSError, ValueError) as error:
        raise REPORT_UNWRITABLE(path=target, problem=getattr(error, "strerror", None) or error) from error


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201
