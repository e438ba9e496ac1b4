"""What can be done with a run from this process: watched always, controlled only where its process is in reach."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.runs import process_record

if TYPE_CHECKING:
    from engine.runs.run_directory import RunDirectory


@dataclass(frozen=True)
class Access:
    """Whether a run's process is on this machine, and why it takes no commands from here."""

    here: bool
    refusal: str = ""
    """"" where commands can be sent."""


def look(run: RunDirectory) -> Access:
    """How the run's process can be reached. Connects to nothing."""
    record = process_record.read_record(run.process_path)
    here = record is None or record.place == process_record.this_place()
    if not here:
        return Access(here, "its process is on another machine; this folder is a copy or a mount")
    try:
        owner = run.socket_path.stat().st_uid
    except OSError:
        # Before the process has come up, and after its end, there is none either.
        alive = record is not None and process_record.is_alive(run.process_path, record)
        return Access(here, "it has no control socket in its folder" if alive else "")
    if owner != os.getuid():
        return Access(here, "another user started it")
    return Access(here)
