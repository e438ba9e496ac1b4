"""Writes report.md of a run that gave up, with its failures, recoveries and next steps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import one_line
from engine.whole_file import replace_text

if TYPE_CHECKING:
    from engine.training.state import Progress


def write_recovery_report(path: Path, run: str, progress: Progress, last: str) -> None:
    """Writes the report and replaces an older one atomically.

    Raises:
        OSError: the disk is full or not writable.
    """
    skipped = ", ".join(map(str, progress.skipped)) or "none"
    lines = [
        f"# Run {run} gave up at step {progress.step:,} of {progress.total_steps:,}",
        "",
        f"After {progress.rollbacks} times of going back the loss broke out again: {one_line(last)}",
        "",
        "## What was tried",
        "",
        *(f"- {one_line(text)}" for text in progress.recoveries),
        "",
        f"Updates passed over: {skipped}. The learning rate was lowered to {progress.rate_scale:g} of the configured.",
        "",
        "## What to do",
        "",
        "The last checkpoint holds the state before the loss broke out. Start a new run with a lower",
        "`training.learning_rate`, or look at the files that these updates learn (`engine data`).",
    ]
    replace_text(path, "\n".join(lines) + "\n")
