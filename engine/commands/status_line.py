"""Shows what a command is doing in a line that disappears, on a terminal only."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final, TypedDict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console


class _Redirection(TypedDict):
    redirect_stdout: bool
    redirect_stderr: bool


STREAMS_KEPT: Final[_Redirection] = {"redirect_stdout": False, "redirect_stderr": False}
"""Arguments of rich's live displays, which otherwise print on the terminal what is written to sys.stdout and
sys.stderr: the output of libraries that goes to a log, and terminal sequences as text."""


@contextlib.contextmanager
def status_line(console: Console, text: str) -> Iterator[Callable[[str], None]]:
    """Shows a spinner with a text inside the block; yields a function that replaces the text."""
    from rich.progress import Progress, SpinnerColumn, TextColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal, **STREAMS_KEPT) as line:
        task = line.add_task(text, total=None)

        def update(text: str) -> None:
            line.update(task, description=text)

        yield update
