"""Writes that survive a power loss: synced before they are named, and named in a synced folder.

What a failed write means is decided here, for every file of a run:

| errno | policy |
|---|---|
| ENOSPC, EDQUOT | the run waits for space (engine.training.disk_space); events wait in memory |
| EIO, ESTALE, ETIMEDOUT | a checkpoint is left to the next one, a file that must be there is tried again; a warning |
| EINVAL, ENOTSUP, ENOSYS of fsync | nothing more can be done, and the write counts |
| any other | the run ends with exit code 4 |
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT)
_TRANSIENT = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)
_NOT_SYNCABLE = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)
"""Some network and overlay file systems sync nothing on request: there is nothing more that could be done."""


def is_full(error: BaseException) -> bool:
    """Whether an exception, or the one that it was raised from, means a full disk or a used-up quota."""
    # safetensors and tokenizers write files themselves, and give the system's error only in their message.
    return _number(error) in _FULL or "No space left on device" in str(error)


def is_transient(error: BaseException) -> bool:
    """Whether an exception, or the one that it was raised from, is a disk's failure that may not be repeated."""
    return _number(error) in _TRANSIENT


def _number(error: BaseException) -> int | None:
    for found in (error, error.__cause__):
        if isinstance(found, OSError):
            return found.errno
    return None


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
