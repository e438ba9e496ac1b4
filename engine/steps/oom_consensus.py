"""A smaller layout for all ranks, requested by a rank that ran out of memory, and used by all after a restart.

Ranks that compute a window together share one layout, and wait for each other in the middle of a step, where none can
change it alone. On OOM a rank writes the next smaller layout to the run directory and exits. The run's own process
restarts all ranks from the last checkpoint in that layout.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.runs.rank_files import FOLDER
from engine.whole_file import replace_text

_TAKEN = "layout.json"


@dataclass(frozen=True, kw_only=True)
class FallbackRequest:
    """A request for the next smaller layout."""

    rank: int
    "The rank that requests it."
    time: float
    layout: dict[str, Any]
    "engine.plan.step_layout.StepLayout.as_json()."
    what: str
    "The change of the layout, for people."
    why: str


def ask(run: Path, rank: int, layout: Mapping[str, Any], what: str, why: str) -> None:
    """Writes a rank's request to the run directory, before the rank exits."""
    with contextlib.suppress(OSError):  # without a request the run ends with the OOM error
        _write(_path(run, rank), FallbackRequest(rank=rank, time=time.time(), layout=dict(layout), what=what, why=why))


def asked(run: Path) -> FallbackRequest | None:
    """Returns the earliest request of any rank; None if there is none."""
    found = [wish for path in (run / FOLDER).glob("rank-*.retreat.json") if (wish := _read(path)) is not None]
    return min(found, key=lambda wish: wish.time, default=None)


def take(run: Path, wish: FallbackRequest) -> None:
    """Stores a request for all ranks to read after the restart, and deletes the others.

    Raises:
        OSError: the run directory cannot be written.
    """
    forget(run)
    _write(run / FOLDER / _TAKEN, wish)


def taken(run: Path) -> FallbackRequest | None:
    """Reads the request that all ranks start with; None if there is none."""
    return _read(run / FOLDER / _TAKEN)


def forget(run: Path) -> None:
    """Deletes all requests; a run that starts needs none, because a checkpoint stores its layout."""
    for path in (*(run / FOLDER).glob("rank-*.retreat.json"), run / FOLDER / _TAKEN):
        path.unlink(missing_ok=True)


def _path(run: Path, rank: int) -> Path:
    return run / FOLDER / f"rank-{rank}.retreat.json"


def _write(path: Path, wish: FallbackRequest) -> None:
    replace_text(path, json.dumps(asdict(wish)))


def _read(path: Path) -> FallbackRequest | None:
    with contextlib.suppress(OSError, ValueError, TypeError):
        return FallbackRequest(**json.loads(path.read_text(encoding="utf-8")))
    return None
