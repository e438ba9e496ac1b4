"""Writes that survive a power loss: synced before they are named, and named in a synced folder."""

from __future__ import annotations

import errno
import os
from pathlib import Path

_NOT_SYNCABLE = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)
"""Some network and overlay file systems sync nothing on request: there is nothing more that could be done."""


def sync(descriptor: int) -> None:
    """Waits until an open file or folder is on the disk; a file system that cannot be asked is taken at its word.

    Raises:
        OSError: the disk failed (EIO) or is full (ENOSPC, EDQUOT).
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_SYNCABLE:
            raise


def sync_path(path: Path) -> None:
    """Waits until a file's content or a folder's names are on the disk.

    Raises:
        OSError: see `sync`, or the path cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Waits until all files below a folder, and the names of them, are on the disk.

    Raises:
        OSError: see `sync_path`.
    """
    for parent, _, names in os.walk(folder):
        for name in names:
            sync_path(Path(parent, name))
        sync_path(Path(parent))


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file and waits until its content is on the disk; its name is once `sync_path` of its folder is done.

    Raises:
        OSError: the folder cannot be written, or is full.
    """
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        sync(file.fileno())


def rename(source: Path, target: Path) -> None:
    """Renames a file or folder whose content is on the disk, and waits until the new name is.

    Raises:
        OSError: it cannot be renamed.
    """
    source.replace(target)
    sync_path(target.parent)
