"""A smaller step for all ranks: asked for by one that ran out of memory, taken by all when they begin again.

Ranks that compute a window together have one layout, and wait for each other in the middle of a step, where none can
change it alone. The one whose memory is full says which layout would fit and ends; the run's own process starts all of
them again from the last checkpoint, in that layout.
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
    """One notch down."""

    rank: int
    "Who asks for it."
    time: float
    layout: dict[str, Any]
    "engine.plan.step_layout.StepLayout.as_json()."
    what: str
    "What changes, in the plan's own words."
    why: str


def ask(run: Path, rank: int, layout: Mapping[str, Any], what: str, why: str) -> None:
    """Leaves a rank's wish in the run directory, before it ends."""
    with contextlib.suppress(OSError):  # the run ends as it would have
        _write(_path(run, rank), FallbackRequest(rank=rank, time=time.time(), layout=dict(layout), what=what, why=why))


def asked(run: Path) -> FallbackRequest | None:
    """The first rank's wish, if any has one."""
    found = [wish for path in (run / FOLDER).glob("rank-*.retreat.json") if (wish := _read(path)) is not None]
    return min(found, key=lambda wish: wish.time, default=None)


def take(run: Path, wish: FallbackRequest) -> None:
    """All ranks find it when they begin again; the wishes are forgotten.

    Raises:
        OSError: the run directory cannot be written.
    """
    forget(run)
    _write(run / FOLDER / _TAKEN, wish)


def taken(run: Path) -> FallbackRequest | None:
    """What all ranks begin with."""
    return _read(run / FOLDER / _TAKEN)


def forget(run: Path) -> None:
    """A run begins anew: a checkpoint knows its layout."""
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
