"""Shows the runs in one line, for a status bar: once, or again whenever it changes."""

from __future__ import annotations

import json
import os
import select
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len, set_cell_size

from engine.errors import one_line
from engine.quantities import format_seconds
from engine.runs.run_summary import ACTIVE

if TYPE_CHECKING:
    from engine.runs.run_summary import RunSummary

REFRESH_SECONDS = 1.0
SILENT_SECONDS = 120.0
"""Seconds without an event after which the line says so."""
NO_RUNS = "no runs"

Stamp = tuple[tuple[int, int], ...]


class RunReader:
    """Reads the summaries of all runs again and again; those that have ended only when their files change."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[Stamp, RunSummary]] = {}

    def read(self, output: Path | None) -> list[RunSummary]:
        """Lists the runs, newest first."""
        from engine.runs import run_index

        found = {}
        for run in run_index.find_runs(output):
            stamp = tuple(_stamp(path) for path in (run.journal_path, run.process_path, run.config_path))
            known = self._known.get(run.path)
            if known is None or known[0] != stamp or known[1].status in ACTIVE:
                known = stamp, run.summary()
            found[run.path] = known
        self._known = found
        return [summary for _, summary in found.values()]


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size


def glance(runs: Sequence[RunSummary], now: float) -> dict[str, Any]:
    """Returns the line and the figures of the run that it tells of: the newest that trains, else the newest.

    `text`, `tooltip` and `class` are what waybar and similar bars read.
    """
    active = [run for run in runs if run.status in ACTIVE]
    shown = next(iter(active or runs), None)
    if shown is None:
        return {"text": NO_RUNS, "tooltip": "", "class": "none", "run": None, "active": 0}
    others = [run for run in active if run is not shown]
    text = describe(shown, now) + (f" (+{len(others)})" if others else "")
    return {
        "text": text,
        "tooltip": "\n".join(describe(run, now) for run in others),
        "class": shown.status,
        "run": shown.id,
        "active": len(active),
        "step": shown.step,
        "total_steps": shown.total_steps,
        "loss": shown.loss,
        "perplexity_before": shown.perplexity_before,
        "perplexity_after": shown.perplexity_after,
        "eta_seconds": _left(shown, now),
    }


def describe(run: RunSummary, now: float) -> str:
    """Formats a run in one safe line."""
    state = run.phase or run.status if run.status == "running" else run.status
    parts = [f"{run.model_name} {state}"]
    if run.status in ACTIVE:
        if run.total_steps:
            parts[0] += f" {run.step:,}/{run.total_steps:,}"
        if run.loss is not None:
            parts.append(f"loss {run.loss:,.3f}")
        silent = now - run.updated if run.updated is not None else 0.0
        left = _left(run, now)
        if run.status != "paused" and silent > SILENT_SECONDS:
            parts.append(f"no news for {format_seconds(silent)}")
        elif left is not None:
            parts.append(f"{format_seconds(left)} left")
    else:
        parts[0] += f" {run.step:,}/{run.total_steps or run.step:,}"
        if run.perplexity_before is not None and run.perplexity_after is not None:
            parts.append(f"perplexity {run.perplexity_before:,.4g} → {run.perplexity_after:,.4g}")
    # tmux reads "#" in what a command prints.
    return one_line(", ".join(parts)).replace("#", "")


def _left(run: RunSummary, now: float) -> float | None:
    if run.eta_seconds is None or run.status not in ACTIVE:
        return None
    passed = now - run.updated if run.updated is not None and run.status != "paused" else 0.0
    return round(max(0.0, run.eta_seconds - max(0.0, passed)), 1)


def show_once(output: Path | None, *, as_json: bool) -> None:
    """Prints the line once."""
    _print_line(glance(RunReader().read(output), time.time()), as_json=as_json)


def watch(output: Path | None, *, as_json: bool) -> None:
    """Prints the line again whenever it changes: over itself in a terminal, else as a new line.

    Ends on Ctrl-C, and when the reader of the pipe has gone.
    """
    in_place = not as_json and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    reader, former = RunReader(), None
    waiting = select.poll()
    waiting.register(sys.stdout.fileno(), 0)  # tells only of errors and of a reader that has gone
    try:
        while True:
            found = glance(reader.read(output), time.time())
            if in_place:
                found["text"] = _fitted(found["text"], shutil.get_terminal_size().columns)
            key = {**found, "eta_seconds": None}
            if key != former:
                former = key
                if in_place:
                    # One write of the whole line, and only what is left of the former one erased: no flicker.
                    sys.stdout.write(f"\r{found['text']}\x1b[K")
                    sys.stdout.flush()
                else:
                    _print_line(found, as_json=as_json)
            if waiting.poll(1000 * REFRESH_SECONDS):
                return
    except KeyboardInterrupt:
        pass
    finally:
        if in_place:
            print(flush=True)  # noqa: T201


def _print_line(found: dict[str, Any], *, as_json: bool) -> None:
    line = json.dumps(found, ensure_ascii=False, allow_nan=False) if as_json else found["text"]
    print(line, flush=True)  # noqa: T201


def _fitted(text: str, columns: int) -> str:
    # A full last column would wrap in some terminals.
    most = max(10, columns - 1)
    return text if cell_len(text) <= most else set_cell_size(text, most - 1) + "…"
