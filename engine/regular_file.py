"""Opens files that somebody else may have made: regular files only, without following a link, without waiting.

A FIFO would block its reader, a device would never end, and a link would lead out of the folder.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

MOST_BYTES = 64 << 20
"""Of a file that is read as a whole, unless its reader expects more."""


class NotRegularError(OSError):
    """The path is no regular file, or it is too long. The message says which."""


def open_regular(path: Path) -> int:
    """Opens a file for reading and returns its descriptor, which the caller closes.

    Raises:
        NotRegularError: it is a link, a folder, a FIFO, a socket or a device.
        OSError: it is missing or cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise NotRegularError(f"{path.name} is no regular file")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """Reads a whole file.

    Raises:
        NotRegularError: see `open_regular`; or it has more than `most` bytes.
        OSError: it is missing or cannot be read.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise NotRegularError(f"{path.name} has more than {most:,} bytes")
    return data


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """Reads a whole file as UTF-8.

    Raises:
        OSError: see `read_bytes`.
        UnicodeDecodeError: it is no UTF-8.
    """
    return read_bytes(path, most).decode("utf-8")
