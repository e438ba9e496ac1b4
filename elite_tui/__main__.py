"""Runs the `elite-tui` command (wizard, run monitor, list of runs)."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Sequence
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING

from engine import __version__
from engine.cli import require_working_directory
from engine.commands.parser import CommandParser, report
from engine.errors import EliteError
from engine.home_folder import expand_home
from engine.standard_streams import open_standard_streams, writes_unicode

if TYPE_CHECKING:
    from elite_tui.wizard.draft import Draft


def build_parser() -> CommandParser:
    """Builds the parser of the command's options."""
    parser = CommandParser(
        prog="elite-tui",
        description="Fine-tune a code model on your own repository: a wizard, and a monitor for its runs.",
        epilog="Runs go on when this program ends. `engine --help` lists the commands without a terminal app.",
    )
    parser.add_argument("--version", action="version", version=f"elite-tui {__version__}")
    parser.add_argument("--repo", metavar="DIR", action="append", help="repository to train on; may be given again")
    parser.add_argument("--simulate", metavar="GPU", help="plan for a card that is not here, for example rtx-3060")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    watching = "watch a run, live or finished; the newest where none is named"
    monitor = commands.add_parser("monitor", help=watching, description=f"{watching[0].upper()}{watching[1:]}.")
    monitor.add_argument(
        "runs", nargs="*", metavar="RUN", help="id, the beginning of one, or a run directory; several open in tabs"
    )
    parser.commands = {
        "monitor": monitor,
        "runs": commands.add_parser("runs", help="list the runs", description="List the runs."),
    }
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the app and returns the process's exit status."""
    open_standard_streams()
    if isinstance(sys.__stderr__, io.TextIOWrapper) and not writes_unicode(sys.__stderr__):
        # Textual draws on it, and an escape such as \\u25cf would take six cells for one.
        sys.__stderr__.reconfigure(errors="replace")
    args = build_parser().parse_args(arguments)
    try:
        require_working_directory()
        return _run(args)
    except EliteError as error:
        return report(error, as_json=False, program="elite-tui")


def _run(args: argparse.Namespace) -> int:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        if args.command == "runs":
            from engine.cli import main as engine_main

            return engine_main(["runs"])
        print(  # noqa: T201
            "elite-tui: this needs a terminal; `engine` does the same without one", file=sys.stderr
        )
        return 2
    for name in ("COLUMNS", "LINES"):  # of a shell that exports them: Textual would never see another size
        os.environ.pop(name, None)
    references: list[str] = []
    if args.command == "monitor":
        from engine.runs.run_index import find_run

        # Report a wrong run name on the command line, not inside the app.
        references = [str(find_run(reference).path) for reference in args.runs or [None]]
    if args.simulate:
        from engine.hardware.cards import find_card

        find_card(args.simulate)
    # Inside Textual, stderr has no file descriptor, and the first spawned process could not start the tracker.
    resource_tracker.ensure_running()

    from elite_tui.app import EliteApp
    from elite_tui.client.calls import Engine
    from elite_tui.state import AppState

    app = EliteApp(
        AppState(draft=load_draft(args.repo), simulated=args.simulate),
        Engine(simulate=args.simulate),
        first_screen=args.command or "project",
        runs=references,
    )
    # Workers that decode a long journal pass the interpreter on sooner, so that a key waits a few milliseconds.
    sys.setswitchinterval(0.001)
    farewell = app.run()
    if farewell:
        print(farewell)  # noqa: T201
    return app.return_code or 0


def load_draft(repositories: Sequence[str] | None) -> Draft:
    """Loads the saved draft and sets its repositories from the command line.

    Without any, and with none saved, uses the repository of the current folder.
    """
    from elite_tui.wizard.draft import FILE_NAME, Draft
    from engine.runs.run_index import state_directory

    draft = Draft.load(state_directory() / FILE_NAME)
    if repositories:
        draft.set("data.repositories", [str(expand_home(path).absolute()) for path in repositories])
    elif draft.is_default("data.repositories"):
        with contextlib.suppress(OSError):
            draft.set("data.repositories", [str(enclosing_repository(Path.cwd()))])
    return draft


def enclosing_repository(folder: Path) -> Path:
    """Returns the git work tree that a folder is in, or the folder itself outside any."""
    return next((path for path in (folder, *folder.parents) if (path / ".git").exists()), folder)


if __name__ == "__main__":
    raise SystemExit(main())
