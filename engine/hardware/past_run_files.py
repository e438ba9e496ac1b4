"""Stores past runs in the user's cache, in one file per machine, beside measurements."""

from __future__ import annotations

from pathlib import Path

import msgspec

from engine.hardware.machine import Machine
from engine.hardware.measured_files import fingerprint, folder
from engine.hardware.past_runs import PastRun, PastRuns
from engine.whole_file import replace_text

KEPT = 100
"""Latest runs in the file."""


def load(machine: Machine) -> PastRuns | None:
    """Loads this machine's past runs; None if there are none, or the file is invalid."""
    try:
        found = msgspec.json.decode(_path(machine).read_bytes(), type=list[PastRun])
    except (OSError, ValueError, msgspec.MsgspecError):
        return None
    return PastRuns(tuple(found)) if found else None


def add(machine: Machine, run: PastRun) -> None:
    """Adds a run to the file, in place of an earlier record of the same run.

    Raises:
        OSError: the cache cannot be written.
    """
    before = load(machine)
    others = [past for past in (before.runs if before else ()) if past.run != run.run]
    path = _path(machine)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = msgspec.json.format(msgspec.json.encode([*others, run][-KEPT:]), indent=1).decode()
    replace_text(path, text)


def _path(machine: Machine) -> Path:
    return folder() / f"{fingerprint(machine)}.runs.json"
