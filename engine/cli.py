"""The `engine` command. Parses arguments, runs one sub-command, and turns errors into one line and an exit code.

A named command imports its own module alone; `engine --help` imports none.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import stat
import sys
from collections.abc import Iterable, Sequence

from engine import __version__
from engine.commands.parser import CommandParser, report
from engine.commands.summaries import SUMMARIES, module_of
from engine.errors import INTERRUPTED, USAGE, EliteError
from engine.errors.usage import STDOUT_UNWRITABLE, WORKING_DIRECTORY_GONE
from engine.hardware.environment import limit_omp_spin, number_by_bus
from engine.standard_streams import open_standard_streams


def build_parser(filled: Iterable[str] = SUMMARIES) -> CommandParser:
    """Builds the parser of all sub-commands.

    Args:
        filled: The ones whose options are added. The others have names and summaries only.
    """
    parser = CommandParser(
        prog="engine",
        description="Fine-tune a code model on your own repository, headless.",
        epilog="Exit codes: 0 done; 2 wrong usage or configuration; 3 does not fit or pre-flight failed; "
        "4 training failed; 130 interrupted, after a checkpoint.",
    )
    parser.add_argument("--version", action="version", version=f"elite-tui {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, summary in SUMMARIES.items():
        subparser = subparsers.add_parser(name, help=summary, description=summary)
        if name in filled:
            module = importlib.import_module(module_of(name))
            module.add_arguments(subparser, name)
            subparser.set_defaults(run=module.run, command=name)
            parser.commands[name] = subparser
    return parser


def _named_command(arguments: Sequence[str]) -> str:
    """Returns the argument that argparse takes for the sub-command, which no option with a value precedes."""
    return next((argument for argument in arguments if not argument.startswith("-")), "")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    open_standard_streams()
    limit_omp_spin(os.environ)  # before a command imports torch
    number_by_bus(os.environ)
    try:
        status = _run(arguments)
        sys.stdout.flush()  # at the interpreter's exit it would be a traceback
    except (BrokenPipeError, SystemExit) as error:
        # Of a pipe that its reader closed (`engine runs | head`), rich makes an exit with 1.
        if not isinstance(error, BrokenPipeError) and not isinstance(error.__context__, BrokenPipeError):
            raise
        _drop_output()
        return 0
    except OSError as error:
        _drop_output()
        with contextlib.suppress(OSError):  # stderr may be on the same disk
            return report(STDOUT_UNWRITABLE(problem=error.strerror or error), as_json=False)
        return USAGE
    return status


def _run(arguments: Sequence[str]) -> int:
    """Runs the command.

    Raises:
        OSError: standard output cannot be written.
    """
    args = build_parser([_named_command(arguments)]).parse_args(arguments)
    as_json = getattr(args, "json", False)
    try:
        require_working_directory()
        status: int = args.run(args)
    except EliteError as error:
        return report(error, as_json=as_json)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BaseException as error:
        if isinstance(error, SystemExit | BrokenPipeError):
            raise
        if isinstance(error, OSError) and error.filename is None:
            _flush_output(error)
        # A panic of a library in Rust is no Exception.
        from engine.runs.crash_log import internal_error

        return report(internal_error(error), as_json=as_json)
    return status


def _flush_output(error: OSError) -> None:
    """Raises again where an error that names no file was about standard output; writes nothing of its own there.

    Raises:
        OSError: standard output cannot be written.
    """
    sys.stdout.flush()  # a buffered stream holds what it could not write, and tries it again
    try:
        number = sys.stdout.fileno()
    except (OSError, ValueError):  # a stream of a test has no number
        return
    os.write(number, b"")  # a device fails for no bytes too
    full = error.errno == errno.ENOSPC and stat.S_ISREG(os.fstat(number).st_mode)
    if full and os.fstatvfs(number).f_bavail == 0:  # an unbuffered stream has forgotten what it could not write
        raise error


def _drop_output() -> None:
    """Lets what was not written go, which Python would try again at exit."""
    with contextlib.suppress(OSError, ValueError):  # a stream of a test has no number
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def require_working_directory() -> None:
    """Makes sure that relative paths have a meaning.

    Raises:
        EliteError: WORKING_DIRECTORY_GONE.
    """
    try:
        os.getcwd()  # noqa: PTH109 - pathlib's would be the same call
    except OSError as error:
        raise WORKING_DIRECTORY_GONE() from error


if __name__ == "__main__":
    raise SystemExit(main())
