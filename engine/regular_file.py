"""Opens files that somebody else may have made: regular files only, without following a link, without waiting.

A FIFO would block its reader, a device would never end, and a link would lead out of the folder. JSON may be nested
deeper than its parser can follow, and hold numbers that no float holds.
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from pathlib import Path
from typing import Any

MOST_BYTES = 64 << 20
"""Of a file that is read as a whole, unless its reader expects more."""


class NotRegularError(OSError):
    """The path is no regular file, or it is too long. The message says which."""


def open_regular(path: Path, *, follow: bool = False) -> int:
    """Opens a file for reading and returns its descriptor, which the caller closes.

    Args:
        path: Its path.
        follow: Whether it may be a link to a regular file, as the files of a hub's cache are.

    Raises:
        NotRegularError: it is a link, a folder, a FIFO, a socket or a device.
        OSError: it is missing or cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW) | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise NotRegularError(f"{path.name} is no regular file")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_for_appending(path: Path, *, reading: bool = False) -> int:
    """Opens a file of a run directory for appending, makes it where it is missing, and returns its descriptor.

    Args:
        path: Its path.
        reading: Whether it is read too.

    Raises:
        NotRegularError: it is a FIFO or a device.
        OSError: it is a link or a folder, or cannot be written.
    """
    access = os.O_RDWR if reading else os.O_WRONLY
    flags = access | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o644)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotRegularError(errno.EINVAL, f"{path.name} is no regular file")
    return descriptor


def read_bytes(path: Path, most: int = MOST_BYTES, *, follow: bool = False) -> bytes:
    """Reads a whole file.

    Raises:
        NotRegularError: see `open_regular`; or it has more than `most` bytes.
        OSError: it is missing or cannot be read.
    """
    with os.fdopen(open_regular(path, follow=follow), "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise NotRegularError(f"{path.name} has more than {most:,} bytes")
    return data


def read_text(path: Path, most: int = MOST_BYTES, *, follow: bool = False) -> str:
    """Reads a whole file as UTF-8.

    Raises:
        OSError: see `read_bytes`.
        UnicodeDecodeError: it is no UTF-8.
    """
    return read_bytes(path, most, follow=follow).decode("utf-8")


def read_head(path: Path, most: int) -> str:
    """Reads the beginning of a file, at most `most` bytes; bytes that are no UTF-8 become replacement characters.

    Raises:
        OSError: see `open_regular`.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        return file.read(most).decode("utf-8", "replace")


def read_tail(path: Path, most: int) -> str:
    """Reads the end of a file, at most `most` bytes, from the start of a line; see `read_head`.

    Raises:
        OSError: see `open_regular`.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - most))
        text = file.read(most).decode("utf-8", "replace")
    return text if size <= most else text.partition("\n")[2]


_MOST = 2**63
"""Whole numbers of a run's files are below it, and finite."""


def read_object(path: Path, most: int = MOST_BYTES, *, follow: bool = False, bounded: bool = True) -> dict[str, Any]:
    """Reads a file that holds one JSON object.

    Args:
        path: Its path.
        most: Most bytes.
        follow: See `open_regular`.
        bounded: Whether to refuse whole numbers of 64 bits and more, NaN and infinities.

    Raises:
        OSError: see `read_bytes`.
        ValueError: it is no UTF-8, no JSON or no object, or is nested too deeply.
    """
    text = read_text(path, most, follow=follow)
    hooks: dict[str, Any] = {"parse_int": _whole, "parse_float": _finite, "parse_constant": _finite} if bounded else {}
    try:
        value = json.loads(text, **hooks)
    except RecursionError:
        raise ValueError(f"{path.name} is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    return value


def _whole(text: str) -> int:
    if len(text) > 20 or abs(int(text)) >= _MOST:
        raise ValueError(f"{text[:20]}… is no number of 64 bits")
    return int(text)


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:20]} is not finite")
    return number
