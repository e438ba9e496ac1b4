"""Deletes a run that has ended: its folder, nothing else, and never by halves under its own name."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from engine import errors
from engine.runs.run_summary import ACTIVE

if TYPE_CHECKING:
    from engine.runs.run_directory import RunDirectory

_ASIDE = ".deleted-"
"""Beginning of the name of a run that is being deleted. Names with a dot are no runs to anybody."""


def delete_run(run: RunDirectory) -> None:
    """Removes a run with all it holds: checkpoints, adapter, journal, log.

    The folder is renamed first, so that the run is there whole or not at all, and nobody can resume it meanwhile.
    What a crash left of an earlier deletion is removed too. Links inside are removed, not followed.

    Raises:
        EliteError: RUN_UNDELETABLE where it is no run directory, or the disk refuses; RUN_STILL_ACTIVE while its
            process lives, also one on another machine; RUN_UNKNOWN where it was deleted meanwhile.
    """
    path = run.path
    if path.is_symlink() or path.parent.name != "runs" or not run.config_path.is_file():
        raise errors.RUN_UNDELETABLE(path=path, problem="it is not a run's folder below an output folder's runs")
    aside = path.with_name(f"{_ASIDE}{run.id}-{secrets.token_hex(2)}")
    try:
        with run.launching():
            if (status := run.status()) in ACTIVE:
                raise errors.RUN_STILL_ACTIVE(run=run.id, status=status)
            path.rename(aside)
        for leftover in path.parent.glob(f"{_ASIDE}*"):
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover)
    except OSError as error:
        raise errors.RUN_UNDELETABLE(path=_at_fault(path, error), problem=error.strerror or error) from error


def _at_fault(path: Path, error: OSError) -> Path:
    return Path(error.filename) if isinstance(error.filename, str) else path
