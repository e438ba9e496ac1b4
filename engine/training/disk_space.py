"""Handles a full or failing disk during a run, by the policy of engine.durable.

Deletes old checkpoints, then pauses the run until there is space, instead of ending it. Writes again what a disk
failed to write.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from engine import durable
from engine.errors import one_line
from engine.errors.runs import OUTPUT_FULL, OUTPUT_UNWRITABLE
from engine.hardware.disk import read_disk
from engine.protocol.commands import Resume, Stop
from engine.protocol.events import PAUSED_PREFIX, RecoveryTaken, WarningRaised
from engine.quantities import format_bytes

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
"""Free bytes before a file of the run is written again. A larger one fails again and is retried."""

_ATTEMPTS = 4
"""Writes of a file that the run cannot do without, before a failing disk ends it."""

T = TypeVar("T")


class DiskSpace:
    """Frees disk space for a checkpoint, or waits for it.

    Args:
        session: Emits events, and receives Stop and Resume while waiting.
        folder: The run's checkpoints.
    """

    def __init__(self, session: TrainingSession, folder: CheckpointFolder) -> None:
        self._session, self._folder = session, folder

    def until_written(self, write: Callable[[], T]) -> T:
        """Retries a write that the run cannot do without, until there is space for it; returns its result.

        Raises:
            EliteError: OUTPUT_FULL, at a Stop, or if recovery is off; OUTPUT_UNWRITABLE, if the disk fails repeatedly.
        """
        failures = 0
        while True:
            try:
                return write()
            except Exception as error:
                if durable.is_full(error):
                    self._await_room(error)
                elif durable.is_transient(error):
                    failures += 1
                    self._report_failure(error, failures)
                else:
                    raise

    def _await_room(self, error: Exception) -> None:
        message = OUTPUT_FULL(path=self._session.run.path, free="no space", needed="room for its files")
        if not self._session.config.recovery.enabled:
            raise message from error
        self.make(_RESULT_BYTES, message)

    def _report_failure(self, error: Exception, failures: int) -> None:
        if failures == _ATTEMPTS or not self._session.config.recovery.enabled:
            raise OUTPUT_UNWRITABLE(path=self._session.run.path, problem=one_line(error)) from error
        self._session.emit(
            WarningRaised(
                code="disk-failed",
                text=f"the disk failed at a file of the run: {one_line(error)}",
                hint="the disk may be failing: the run tries again",
            )
        )

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
                hint=f"free {format_bytes(needed * _MARGIN)}: the run then goes on by itself; "
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
