"""Opens files of a folder that may be hostile: no link is followed, nothing blocks, nothing outside is read."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import PurePosixPath

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class NotRegularError(Exception):
    """What is at a path cannot be read as a file. The message is a reason of engine.data.filters.REASONS."""


class Folder:
    """Reads regular files below one folder.

    Each folder on the way to a file is checked once to be a real folder and no link, so a link planted in the
    tree leads nowhere.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self._real: dict[PurePosixPath, bool] = {PurePosixPath(): True}

    def size(self, path: PurePosixPath) -> int:
        """Size in bytes of the regular file at a path below the root.

        Raises:
            NotRegularError: a link, folder, pipe, socket or device; not there; or not permitted.
        """
        if not self._is_inside(path.parent):
            raise NotRegularError("symlink")
        try:
            status = os.lstat(self._join(path))
        except OSError as error:
            raise NotRegularError(_reason(error)) from None
        if stat.S_ISDIR(status.st_mode):
            raise NotRegularError("submodule" if _can_be_listed(self._join(path)) else "unreadable")
        _require_regular(status.st_mode)
        return status.st_size

    def read(self, path: PurePosixPath, limit: int) -> bytes:
        """At most `limit` bytes from the start of the regular file at a path below the root.

        Raises:
            NotRegularError: as for `size`.
        """
        if not self._is_inside(path.parent):
            raise NotRegularError("symlink")
        try:
            descriptor = os.open(self._join(path), _FLAGS)
        except OSError as error:
            raise NotRegularError(_reason(error)) from None
        try:
            _require_regular(os.fstat(descriptor).st_mode)
            return _read(descriptor, limit)
        except OSError as error:
            raise NotRegularError(_reason(error)) from None
        finally:
            os.close(descriptor)

    def _is_inside(self, folder: PurePosixPath) -> bool:
        known = self._real.get(folder)
        if known is None:
            known = (
                folder.name not in ("", "..") and self._is_inside(folder.parent) and _is_real_folder(self._join(folder))
            )
            self._real[folder] = known
        return known

    def _join(self, path: PurePosixPath) -> str:
        return f"{self.root}/{path}"


def _read(descriptor: int, limit: int) -> bytes:
    pieces = []
    while limit > 0:
        piece = os.read(descriptor, min(limit, 1 << 20))
        if not piece:
            break
        pieces.append(piece)
        limit -= len(piece)
    return b"".join(pieces)


def _is_real_folder(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        # What lies in it is then missing or unreadable, which the attempt to open it reports.
        return True


def _can_be_listed(path: str) -> bool:
    try:
        with os.scandir(path):
            return True
    except OSError:
        return False


def _require_regular(mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    if stat.S_ISLNK(mode):
        raise NotRegularError("symlink")
    raise NotRegularError("submodule" if stat.S_ISDIR(mode) else "special")


def _reason(error: OSError) -> str:
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return "missing"
    # O_NOFOLLOW reports a link that appeared since as a loop.
    return "symlink" if error.errno == errno.ELOOP else "unreadable"
