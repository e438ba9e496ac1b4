"""Log of unexpected exceptions."""

from __future__ import annotations

import datetime
import traceback
from pathlib import Path

from engine.errors import EliteError
from engine.errors.usage import INTERNAL
from engine.runs.run_index import state_directory

FILE_NAME = "elite-tui.log"


def record_crash(error: BaseException) -> Path | None:
    """Appends a traceback to the log; returns its path, or None if the log cannot be written."""
    path = state_directory() / FILE_NAME
    now = datetime.datetime.now(tz=datetime.timezone.utc).isoformat(timespec="seconds")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as log:
            log.write(f"--- {now}\n")
            log.writelines(traceback.format_exception(error))
    except OSError:
        return None
    return path


def internal_error(error: BaseException) -> EliteError:
    """Logs an unexpected exception and returns INTERNAL for it."""
    log = record_crash(error)
    return INTERNAL(kind=type(error).__name__, problem=error, log=log or "this message")
