"""Permanently deletes the folder of a run that has ended, and never leaves a partial folder under its name."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors.runs import RUN_STILL_ACTIVE, RUN_UNDELETABLE
from engine.runs.run_summary import ACTIVE

if TYPE_CHECKING:
    from engine.runs.run_directory import RunDirectory

_ASIDE = ".deleted-"
"""Prefix of the name of a run that is being deleted. Names that begin with a dot are not listed as runs."""


def delete_run(run: RunDirectory) -> None:
    """Permanently deletes a run with its checkpoints, adapter, journal and log.

    The folder is renamed first, so that the run is complete or absent, and cannot be resumed during the deletion.
    Leftovers of an earlier interrupted deletion are removed too. Links inside are removed, not followed.

    Raises:
        EliteError: RUN_UNDELETABLE, if it is no run directory or the filesystem refuses; RUN_STILL_ACTIVE, while its
            process is alive, even on another machine; RUN_UNKNOWN, if it was deleted in the meantime.
    """
    path = run.path
    if path.is_symlink() or path.parent.name != "runs" or not run.config_path.is_file():
        raise RUN_UNDELETABLE(path=path, problem="it is not a run's folder below an output folder's runs")
    aside = path.with_name(f"{_ASIDE}{run.id}-{secrets.token_hex(2)}")
    try:
        with run.launching():
            if (status := run.status()) in ACTIVE:
                raise RUN_STILL_ACTIVE(run=run.id, status=status)
            path.rename(aside)
        for leftover in path.parent.glob(f"{_ASIDE}*"):
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover)
    except OSError as error:
        raise RUN_UNDELETABLE(path=_at_fault(path, error), problem=error.strerror or error) from error


def _at_fault(path: Path, error: OSError) -> Path:
    return Path(error.filename) if isinstance(error.filename, str) else path
