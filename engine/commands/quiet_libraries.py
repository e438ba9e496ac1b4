"""Redirects libraries' output, logs and warnings from a command's terminal to a log file."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ParamSpec, TextIO, TypeVar

LOG_NAME = "libraries.log"
"""Log of commands that belong to no run, in the state directory."""
_LONGEST_LOG = 1 << 20

P = ParamSpec("P")
R = TypeVar("R")


class Terminal:
    """The command's own standard output and standard error, while those of the process are redirected to a log.

    Attributes:
        out, err: The streams; None where the process started without.
    """

    def __init__(self, out: TextIO | None, err: TextIO | None) -> None:
        self.out, self.err = out, err

    def speaks(self, function: Callable[P, R]) -> Callable[P, R]:
        """Wraps a function to run with the command's own streams."""

        @functools.wraps(function)
        def spoken(*args: P.args, **kwargs: P.kwargs) -> R:
            before = sys.stdout, sys.stderr
            sys.stdout, sys.stderr = self.out, self.err
            try:
                return function(*args, **kwargs)
            finally:
                sys.stdout, sys.stderr = before

        return spoken


@contextlib.contextmanager
def libraries_logged(log: Path | None = None) -> Iterator[Terminal]:
    """Redirects standard output and standard error to a log inside the block, for Python, C and child processes.

    Args:
        log: A run's engine.log; by default LOG_NAME in the state directory. If it cannot be written, output is
            discarded.
    """
    before = sys.stdout, sys.stderr
    for stream in before:
        if stream is not None:
            stream.flush()
    target = _open(log or _usual_log())
    kept = {number: _duplicate(number) for number in (1, 2)}
    own = [_own(stream, kept[number]) for number, stream in enumerate(before, start=1)]
    for number in kept:
        os.dup2(target, number)
    # Left open, since libraries' log handlers may write to it at any time.
    sys.stdout = sys.stderr = _text(target)
    try:
        yield Terminal(own[0], own[1])
    finally:
        for stream in own:
            if stream is not None:
                with contextlib.suppress(OSError):  # the reader may be gone
                    stream.flush()
        sys.stdout, sys.stderr = before
        for number, descriptor in kept.items():
            if descriptor is None:
                os.close(number)
            else:
                os.dup2(descriptor, number)
                os.close(descriptor)


def _usual_log() -> Path:
    from engine.runs.run_index import state_directory  # loads what runs keep, which few commands need

    return state_directory() / LOG_NAME


def _open(log: Path) -> int:
    """Opens a descriptor that appends to the log, or that discards."""
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        if log.name == LOG_NAME and log.exists() and log.stat().st_size > _LONGEST_LOG:
            os.truncate(log, 0)
        return os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK, 0o644)
    except OSError:
        return os.open(os.devnull, os.O_WRONLY)


def _duplicate(number: int) -> int | None:
    try:
        return os.dup(number)
    except OSError:
        return None  # the process started without this stream


def _own(stream: TextIO | None, descriptor: int | None) -> TextIO | None:
    """Moves the stream to a duplicate descriptor if it is the process's own, which is about to become the log."""
    try:
        number = stream.fileno() if stream is not None else -1
    except (OSError, ValueError):
        number = -1
    return _text(descriptor) if number in (1, 2) and descriptor is not None else stream


def _text(descriptor: int) -> TextIO:
    return open(descriptor, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)
