"""Reads the free space and the kind of a path's disk."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

_NETWORK = ("nfs", "cifs", "smb", "9p", "ceph", "lustre", "gluster", "fuse.sshfs", "beegfs", "afs")


@dataclass(frozen=True, kw_only=True)
class Disk:
    """Filesystem of a path, which need not exist."""

    free: int
    "Bytes that this user may write."
    total: int
    kind: str | None
    "nvme, ssd, hdd or network; None if unknown."


def read_disk(path: Path, root: Path = Path("/")) -> Disk:
    """Reads the disk of a path, which need not exist yet.

    Args:
        path: A file or folder.
        root: Mount point of /proc and /sys.

    Raises:
        OSError: not even the topmost folder of the path can be read.
    """
    present = nearest_existing(path)
    usage = shutil.disk_usage(present)
    return Disk(free=usage.free, total=usage.total, kind=_kind(present, root))


def nearest_existing(path: Path) -> Path:
    """Returns the path itself, or the nearest folder above it that exists."""
    path = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow a link that leads nowhere
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _kind(path: Path, root: Path) -> str | None:
    try:
        device = path.stat().st_dev
        mounts = (root / "proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        if len(fields) > 2 and fields[2] == number and after.startswith(_NETWORK):
            return "network"
    block = root / "sys/dev/block" / number
    try:
        name = block.resolve().name
        # A partition has no queue of its own; its disk's queue is one folder up.
        queue = next(q for q in (block / "queue", block.resolve().parent / "queue") if q.exists())
        spinning = (queue / "rotational").read_text().strip() == "1"
    except (OSError, StopIteration):
        return None
    if name.startswith("nvme"):
        return "nvme"
    if spinning and name.startswith(("vd", "xvd", "dm-", "md")):
        return None  # virtual disks report as rotational regardless of the disk below
    return "hdd" if spinning else "ssd"
