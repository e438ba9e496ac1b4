"""`engine attach`, `stop`, `pause` and `resume`: follow and control a run that another process started."""

from __future__ import annotations

import argparse
import sys
import time
import uuid

from engine.commands.option_values import seconds
from engine.commands.train import add_display_arguments
from engine.errors import USAGE, EliteError, one_line
from engine.errors.runs import RUN_DAMAGED

_POLL_S = 0.1
_A_DAY = 86_400


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """Adds the options of one of the commands."""
    reference = "id, unique beginning of an id, or path of a run"
    if name == "attach":
        parser.add_argument("reference", metavar="RUN", nargs="?", help=f"{reference}; the newest if left out")
        add_display_arguments(parser)
    else:
        parser.add_argument("reference", metavar="RUN", help=reference)
        parser.add_argument(
            "--timeout",
            type=seconds(most=_A_DAY),
            default=10.0,
            metavar="SECONDS",
            help="how long to wait for the answer, a day at most",
        )
    if name == "stop":
        parser.add_argument("--no-save", action="store_true", help="without a checkpoint")
    parser.add_argument("--json", action="store_true", help="print JSON on stdout")


def run(args: argparse.Namespace) -> int:
    """Follows the run, or sends the command."""
    return _attach(args) if args.command == "attach" else _send(args)


def _attach(args: argparse.Namespace) -> int:
    from engine.commands.progress_display import open_display
    from engine.commands.train import display_options, exit_code
    from engine.launch.handle import RunHandle
    from engine.runs import run_index

    handle = RunHandle.attach(run_index.find_run(args.reference))
    try:
        notify = handle.run.load_config().notify.desktop
    except EliteError:
        notify = True  # of another version
    with open_display(**display_options(args, notify=notify)) as display:
        try:
            while handle.ending is None:
                for envelope in handle.poll():
                    display.show(envelope)
                if handle.unreadable:
                    raise RUN_DAMAGED(path=handle.run.path, problem=handle.problem)
                if not handle.behind:
                    time.sleep(_POLL_S)
        except KeyboardInterrupt:
            display.say(f"left run {handle.run.id}, which goes on; `engine stop {handle.run.id}` ends it")
            return 0
        display.finish(handle.run, handle.ending)
    if handle.damaged_lines:
        print(f"skipped {handle.damaged_lines} damaged lines of {handle.run.journal_path}", file=sys.stderr)  # noqa: T201
    return exit_code(handle)


def _send(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from engine.commands.output import print_json
    from engine.protocol.commands import Command, Pause, Resume, Stop
    from engine.runs import run_index
    from engine.runs.control import send_command

    run = run_index.find_run(args.reference)
    identity = uuid.uuid4().hex
    command: Command
    if args.command == "stop":
        command = Stop(id=identity, save=not args.no_save)
    else:
        command = Pause(id=identity) if args.command == "pause" else Resume(id=identity)
    try:
        answer = send_command(run, command, args.timeout)
    except TimeoutError:
        if args.json:
            print_json({"command_id": identity, "command": type(command).__name__, "accepted": None, "text": ""})
        print(f"run {run.id} has the command and acts on it after its present step", file=sys.stderr)  # noqa: T201
        return 0
    if args.json:
        print_json(asdict(answer))
    verdict = "accepted" if answer.accepted else "refused"
    print(f"{args.command} {verdict}: run {run.id} {one_line(answer.text)}".rstrip(), file=sys.stderr)  # noqa: T201
    return 0 if answer.accepted else USAGE
