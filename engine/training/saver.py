"""Writes checkpoints in a thread of its own, so that training waits only for the copy in memory."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.training.checkpoints import CheckpointFolder, SavedCheckpoint
    from engine.training.state import Snapshot


class Saver:
    """One checkpoint at a time; a failure comes back at the next call. Waited for when the process exits.

    Args:
        folder: Where they go.
        announce: Told of each one that is complete, in the saver's thread.
    """

    def __init__(self, folder: CheckpointFolder, announce: Callable[[SavedCheckpoint], None]) -> None:
        self._folder, self._announce = folder, announce
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[SavedCheckpoint] | None = None
        self.last: SavedCheckpoint | None = None
        "The newest that is complete."

    @property
    def busy(self) -> bool:
        """Whether one is being written."""
        return self._pending is not None and not self._pending.done()

    def begin(self, snapshot: Snapshot, held_out_loss: float | None = None) -> None:
        """Starts to write a snapshot, after the one before it.

        Raises:
            EliteError: OUTPUT_FULL or OUTPUT_UNWRITABLE, the one before could not be written.
        """
        self.wait()
        self._pending = self._thread.submit(self._write, snapshot, held_out_loss)

    def check(self) -> None:
        """Raises what the last writing met, if it has ended; once."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Waits until nothing is being written, and raises what the last writing met."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Waits for what is being written, and ends the thread. Raises nothing: the loop has its own end."""
        self._thread.shutdown(wait=True)

    def _write(self, snapshot: Snapshot, held_out_loss: float | None) -> SavedCheckpoint:
        self.last = self._folder.save(snapshot.progress.step, snapshot.files(), held_out_loss)
        self._announce(self.last)
        return self.last
