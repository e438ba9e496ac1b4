"""What ranks leave in the run directory: `ranks/rank-3.log`, and `ranks/rank-3.failed.json` where one failed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path

from engine import regular_file
from engine.protocol import RunFailed
from engine.whole_file import replace_text

FOLDER = "ranks"


@dataclass(frozen=True, kw_only=True)
class RankFailure:
    """How a rank ended by its own word."""

    rank: int
    time: float
    failure: RunFailed


def log_path(run: Path, rank: int) -> Path:
    """A rank's standard output and error."""
    return run / FOLDER / f"rank-{rank}.log"


def write_failure(run: Path, rank: int, failure: RunFailed) -> None:
    """Leaves a rank's last word."""
    text = json.dumps({"rank": rank, "time": time.time(), "failure": dataclasses.asdict(failure)})
    with contextlib.suppress(OSError):  # the log has it too
        replace_text(run / FOLDER / f"rank-{rank}.failed.json", text)


def read_failures(run: Path) -> list[RankFailure]:
    """The last words of ranks that failed, the first failure first."""
    found = []
    for path in (run / FOLDER).glob("rank-*.failed.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            data = json.loads(regular_file.read_text(path))
            failure = RunFailed(**data["failure"])
            found.append(RankFailure(rank=int(data["rank"]), time=float(data["time"]), failure=failure))
    return sorted(found, key=lambda one: one.time)


def clear_failures(run: Path) -> None:
    """Forgets the last words of an earlier attempt."""
    (run / FOLDER).mkdir(exist_ok=True)
    for path in (run / FOLDER).glob("*rank-*.failed.json*"):
        path.unlink(missing_ok=True)
