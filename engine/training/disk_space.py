"""Handles a full disk. Deletes old checkpoints, then pauses the run until there is space, instead of ending it."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from engine import errors
from engine.hardware.disk import read_disk
from engine.protocol import PAUSED_PREFIX, RecoveryTaken, Resume, Stop, WarningRaised

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.errors import EliteError
    from engine.runs.context import TrainingSession
    from engine.training.checkpoints import CheckpointFolder

PAUSED = f"{PAUSED_PREFIX}disk-full"
"""Code of the warning that the run waits for disk space."""

_LOOK_SECONDS = 2.0
_MARGIN = 1.2


_RESULT_BYTES = 16 << 20
"""Free bytes before a result is written again. A larger result fails again and is retried."""


class DiskSpace:
    """Frees disk space for a checkpoint, or waits for it.

    Args:
        session: Emits events, and receives Stop and Resume while waiting.
        folder: The run's checkpoints.
    """

    def __init__(self, session: TrainingSession, folder: CheckpointFolder) -> None:
        self._session, self._folder = session, folder

    def until_written(self, write: Callable[[], None]) -> None:
        """Retries a write that the run must not end without until there is space for it.

        Raises:
            EliteError: OUTPUT_FULL, at a Stop, or if recovery is off.
        """
        while True:
            try:
                write()
            except Exception as error:
                if not _found_no_room(error):
                    raise
                message = errors.OUTPUT_FULL(path=self._session.run.path, free="no space", needed="room for its result")
                if not self._session.config.recovery.enabled:
                    raise message from error
                self.make(_RESULT_BYTES, message)
            else:
                return

    def make(self, needed: int, error: EliteError) -> None:
        """Frees `needed` bytes by deleting older checkpoints, or waits for them.

        Raises:
            EliteError: `error` itself, if a Stop arrived in the meantime.
        """
        pruned = self._folder.keep_only_newest()
        if pruned:
            self._session.emit(
                RecoveryTaken(what=f"deleted {pruned} older checkpoints, kept the newest", why=error.message)
            )
        if self._free() >= needed * _MARGIN:
            return
        self.wait(needed, error)

    def wait(self, needed: int, error: EliteError) -> None:
        """Pauses until `needed` bytes are free, or until a Resume or a Stop arrives.

        Raises:
            EliteError: `error` itself, at a Stop.
        """
        self._session.emit(
            WarningRaised(
                code=PAUSED,
                text=f"paused: {error.message}",
                hint=f"free {needed * _MARGIN / 1e6:,.0f} MB: the run then goes on by itself; "
                "the last complete checkpoint is safe",
            )
        )
        inbox = self._session.commands
        while self._free() < needed * _MARGIN:
            command = inbox.wait(_LOOK_SECONDS)
            if isinstance(command, Stop):
                self._session.acknowledge(command, accepted=True, text="stopping; the disk has no room to save")
                raise error
            if command is not None:
                going = isinstance(command, Resume)
                text = "trying again" if going else "the run waits for room on the disk"
                self._session.acknowledge(command, accepted=going, text=text)
                if going:
                    break
        self._session.emit(RecoveryTaken(what="went on: the disk has room again", why=error.message))

    def _free(self) -> int:
        try:
            return read_disk(self._folder.path).free
        except OSError:
            return 0


def _found_no_room(error: Exception) -> bool:
    # safetensors and tokenizers write files themselves, and give the system's error only in their message.
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error)
