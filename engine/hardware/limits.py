"""Reads a container's limits on RAM and CPU time from cgroups, version 1 and 2.

A container sees the whole machine's memory in /proc/meminfo, but is killed when it exceeds its cgroup's limit.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

_NO_LIMIT = 1 << 60
"Larger limits count as none; version 1 writes a number near 2^63 for no limit."


@dataclass(frozen=True, kw_only=True)
class Memory:
    """RAM of this process, in bytes."""

    total: int
    available: int
    limited_by: str | None
    'The limiting cgroup, such as "cgroup v2"; None if the process may use the whole machine.'


def read_memory(root: Path = Path("/")) -> Memory:
    """Reads the RAM that the machine and all cgroups of this process allow.

    Args:
        root: Mount point of /proc and /sys.
    """
    import psutil

    machine = psutil.virtual_memory()
    memory = Memory(total=machine.total, available=machine.available, limited_by=None)
    for version, folder in _groups(root, "memory"):
        limit_name, usage_name, cache_name = _MEMORY_FILES[version]
        limit = _number(folder / limit_name)
        if limit is None or limit >= min(_NO_LIMIT, memory.total):
            continue
        # The cgroup's page cache counts as usage, but is reclaimed before the OOM killer acts.
        used = (_number(folder / usage_name) or 0) - (_statistic(folder / "memory.stat", cache_name) or 0)
        available = min(memory.available, max(0, limit - max(0, used)))
        memory = Memory(total=limit, available=available, limited_by=f"cgroup v{version}")
    return memory


def find_oom_counter(root: Path = Path("/")) -> Path | None:
    """Finds the file that counts OOM kills, of this process's cgroup, else of the machine.

    Args:
        root: Mount point of /proc and /sys.
    """
    groups = (folder / _OOM_FILES[version] for version, folder in _groups(root, "memory"))
    candidates = (*groups, root / "proc/vmstat")
    return next((path for path in candidates if read_oom_kills(path) is not None), None)


def read_oom_kills(counter: Path) -> int | None:
    """Reads the number of OOM kills from such a file; None if it is missing or has none."""
    return _statistic(counter, "oom_kill")


_OOM_FILES = {1: "memory.oom_control", 2: "memory.events"}
_MEMORY_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}


def count_cores(root: Path = Path("/")) -> int:
    """Counts the cores that this process may use, by its affinity and its cgroup's quota, rounded up."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        cores = os.cpu_count() or 1
    for version, folder in _groups(root, "cpu"):
        if version == 2:
            quota, period = [*_words(folder / "cpu.max"), "", ""][:2]
        else:
            quota, period = (" ".join(_words(folder / f"cpu.cfs_{name}_us")) for name in ("quota", "period"))
        if quota.isdigit() and period.isdigit() and int(period):
            cores = min(cores, max(1, math.ceil(int(quota) / int(period))))
    return cores


def _groups(root: Path, controller: str) -> list[tuple[int, Path]]:
    """Lists version and folder of every cgroup of this process, from its own up to the root.

    Inside a container the path in /proc/self/cgroup may not exist under the mount, which then is the cgroup itself.
    """
    mount = root / "sys/fs/cgroup"
    found = []
    for line in _lines(root / "proc/self/cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            version, top = 2, mount if (mount / "cgroup.controllers").exists() else mount / "unified"
        elif controller in controllers.split(","):
            version, top = 1, mount / controller
        else:
            continue
        folder = top / path.strip("/")
        while folder != top:
            found.append((version, folder))
            folder = folder.parent
        found.append((version, top))
    return found


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()


def _number(path: Path) -> int | None:
    words = _words(path)
    return int(words[0]) if words and words[0].isdigit() else None


def _statistic(path: Path, name: str) -> int | None:
    for line in _lines(path):
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdigit():
            return int(value)
    return None
