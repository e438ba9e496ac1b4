"""Holds a run directory open, so that its run notices when it is renamed, deleted or replaced."""

from __future__ import annotations

import os
from pathlib import Path

from engine.errors.runs import RUN_MOVED


class HeldDirectory:
    """A directory that its process expects to stay where it is.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # Never closed: as long as it is open, no other directory gets its inode number.
        self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def check(self) -> None:
        """Compares the directory under the path with the one that was opened.

        A file system that cannot be asked at the moment (EIO, ESTALE) is no reason to stop.

        Raises:
            EliteError: RUN_MOVED.
        """
        try:
            moved = not os.path.samestat(self._path.stat(), os.fstat(self._descriptor))
        except (FileNotFoundError, NotADirectoryError):
            moved = True
        except OSError:
            return
        if moved:
            raise RUN_MOVED(path=self._path)
