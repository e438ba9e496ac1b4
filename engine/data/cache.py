"""Removes token stores that nobody used for a while, so that a folder of them does not grow for ever."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

_ABANDONED_DAYS = 14
"Days after which an unfinished build is not gone on with any more."
_KEY_LENGTH = 32


def prune(cache: Path, *, keep: int, present: str) -> list[str]:
    """Marks the present store as used, and removes all but the `keep` used last, and old unfinished builds.

    A store that another process builds at the moment stays. One that another process reads goes without harm: what is
    mapped stays readable until it lets go.

    Returns:
        Names of what was removed.
    """
    os.utime(cache / present)
    complete: list[tuple[float, Path]] = []
    unfinished: list[Path] = []
    for entry in _entries(cache):
        used = entry.stat().st_mtime
        if entry.suffix == ".building":
            if time.time() - used > _ABANDONED_DAYS * 86_400:
                unfinished.append(entry)
        elif entry.name != present:
            complete.append((used, entry))
    old = [path for _, path in sorted(complete, reverse=True)[max(0, keep - 1) :]]
    return [path.name for path in (*old, *unfinished) if _remove(path)]


def _entries(cache: Path) -> Iterator[Path]:
    """Yields folders of stores, and nothing else that may lie beside them."""
    for entry in cache.iterdir():
        key = entry.name.removesuffix(".building")
        if len(key) == _KEY_LENGTH and set(key) <= set("0123456789abcdef") and entry.is_dir():
            yield entry


def _remove(path: Path) -> bool:
    lock = path.with_name(path.name.removesuffix(".building") + ".lock")
    try:
        with lock.open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path)  # the lock stays: another process may be waiting for it
    except OSError:
        return False  # it is being built, or is not ours to remove
    return True
