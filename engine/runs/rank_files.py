"""Files of the ranks in the run directory, such as `ranks/rank-3.log` and, after a failure, `rank-3.failed.json`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path

from engine import regular_file
from engine.protocol.events import RunFailed
from engine.whole_file import replace_text

FOLDER = "ranks"


@dataclass(frozen=True, kw_only=True)
class RankFailure:
    """Failure that a rank reported itself."""

    rank: int
    time: float
    failure: RunFailed


def log_path(run: Path, rank: int) -> Path:
    """Returns the path of a rank's log, with its standard output and error."""
    return run / FOLDER / f"rank-{rank}.log"


def write_failure(run: Path, rank: int, failure: RunFailed) -> None:
    """Writes a rank's failure."""
    text = json.dumps({"rank": rank, "time": time.time(), "failure": dataclasses.asdict(failure)})
    with contextlib.suppress(OSError):  # the log has it too
        replace_text(run / FOLDER / f"rank-{rank}.failed.json", text)


def read_failures(run: Path) -> list[RankFailure]:
    """Reads the failures of all ranks, in order of time."""
    found = []
    for path in (run / FOLDER).glob("rank-*.failed.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            data = regular_file.read_object(path)
            failure = RunFailed(**data["failure"])
            found.append(RankFailure(rank=int(data["rank"]), time=float(data["time"]), failure=failure))
    return sorted(found, key=lambda one: one.time)


def clear_failures(run: Path) -> None:
    """Deletes the failures of an earlier attempt."""
    (run / FOLDER).mkdir(exist_ok=True)
    for path in (run / FOLDER).glob("*rank-*.failed.json*"):
        path.unlink(missing_ok=True)
