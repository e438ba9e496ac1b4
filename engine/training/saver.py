"""Writes checkpoints in a background thread, so that training waits only for the copy in memory."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.training.checkpoints import CheckpointFolder, SavedCheckpoint
    from engine.training.state import Snapshot


class Saver:
    """Writes one checkpoint at a time and raises a failure at the next call. Process exit waits for it.

    Args:
        folder: Folder of the checkpoints.
        announce: Called with each complete checkpoint, in the saver's thread.
    """

    def __init__(self, folder: CheckpointFolder, announce: Callable[[SavedCheckpoint], None]) -> None:
        self._folder, self._announce = folder, announce
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[SavedCheckpoint] | None = None
        self.last: SavedCheckpoint | None = None
        "Newest complete checkpoint."

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._pending is not None and not self._pending.done()

    def begin(self, snapshot: Snapshot, held_out_loss: float | None = None) -> None:
        """Starts to write a snapshot, after the previous one is complete.

        Raises:
            EliteError: OUTPUT_FULL or OUTPUT_UNWRITABLE, if the previous one could not be written.
        """
        self.wait()
        self._pending = self._thread.submit(self._write, snapshot, held_out_loss)

    def check(self) -> None:
        """Raises the error of the last write, once, if it has ended with one."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Waits for the write in progress, and raises its error."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Waits for the write in progress, and ends the thread. Raises nothing, so as not to hide the loop's error."""
        self._thread.shutdown(wait=True)

    def _write(self, snapshot: Snapshot, held_out_loss: float | None) -> SavedCheckpoint:
        self.last = self._folder.save(snapshot.progress.step, snapshot.files(), held_out_loss)
        self._announce(self.last)
        return self.last
