"""Tells whether a run can be controlled from this machine. Its journal can always be read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.runs import process_record

if TYPE_CHECKING:
    from engine.runs.run_directory import RunDirectory


@dataclass(frozen=True)
class Access:
    """Access to a run's process from this machine."""

    here: bool
    """Whether the process is on this machine."""
    refusal: str = ""
    """Why it takes no commands from here; "" if commands can be sent."""


def look(run: RunDirectory) -> Access:
    """Determines the access to a run's process, without connecting to it."""
    record = process_record.read_record(run.process_path)
    here = record is None or record.place == process_record.this_place()
    if not here:
        return Access(here, "its process is on another machine; this folder is a copy or a mount")
    try:
        owner = run.socket_path.stat().st_uid
    except OSError:
        # There is no socket either before the process is up and after it has ended.
        alive = record is not None and process_record.is_alive(run.process_path, record)
        return Access(here, "it has no control socket in its folder" if alive else "")
    if owner != os.getuid():
        return Access(here, "another user started it")
    return Access(here)
