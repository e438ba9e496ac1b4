"""Rollback targets of a run, which are a snapshot in memory, at most a few updates old, and its checkpoints."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from engine.atomic_dir import DamagedError
from engine.errors import EliteError
from engine.errors.runs import OUTPUT_FULL
from engine.protocol.events import CheckpointSaved, WarningRaised
from engine.randomness import capture_random
from engine.steps.failures import is_disk_failing, is_disk_full
from engine.training.checkpoints import SavedCheckpoint, verify
from engine.training.disk_space import DiskSpace
from engine.training.saver import Saver
from engine.training.state import Progress, Snapshot, capture, read_snapshot, restore

if TYPE_CHECKING:
    from engine.runs.context import TrainingSession
    from engine.training.components import TrainerComponents

KEEP_STEPS = 10
KEEP_SECONDS = 600.0
"""A snapshot is taken after KEEP_STEPS updates or KEEP_SECONDS seconds, whichever comes first."""


_JOURNAL_BYTES = 1 << 20

_RETRY_SECONDS = 60.0
"""After a checkpoint that could not be written, the next one is due so soon at the latest."""

_ATTEMPTS = 3
"""Writes of a checkpoint that the run waits for."""


class RollbackStore:
    """Takes snapshots and writes checkpoints of one run. `close` it at the end.

    Args:
        session: Receives an event for each checkpoint.
        parts: Components whose state is saved.
        progress: Progress that is saved with them.
    """

    def __init__(self, session: TrainingSession, parts: TrainerComponents, progress: Progress) -> None:
        self._session, self._parts, self._progress = session, parts, progress
        self._recovers = session.config.recovery.enabled
        self._space = DiskSpace(session, parts.checkpoints)
        self._saver = Saver(parts.checkpoints, self._announce)
        self._group = session.group
        self._generators = capture_random()
        self.snapshot = self._take()
        "Newest snapshot in memory."
        self._kept_at = self._saved_at = time.monotonic()
        self._interval = self._every = session.config.checkpoint.every_minutes * 60
        self._group.emergency = self.save_snapshot

    # --- in memory ------------------------------------------------------------------------------------------

    def mark(self) -> None:
        """Captures the RNG states before the next update, so that a state saved from now on draws its numbers again."""
        self._generators = capture_random()

    def keep(self) -> None:
        """Takes a snapshot."""
        self.snapshot = self._take()
        self._kept_at = time.monotonic()

    def keep_if_due(self) -> None:
        """Takes a snapshot if the last one is older than KEEP_STEPS or KEEP_SECONDS."""
        steps = self._progress.step - self.snapshot.progress.step
        if steps >= KEEP_STEPS or self._group.agree(lambda: time.monotonic() - self._kept_at >= KEEP_SECONDS):
            self.keep()

    def go_back(self, snapshot: Snapshot) -> None:
        """Restores weights, optimiser, schedule, RNG states and data position from a snapshot.

        The record of failures is kept.
        """
        restore(snapshot, self._parts)
        now, then = self._progress, snapshot.progress
        now.step, now.epoch, now.windows, now.tokens = then.step, then.epoch, then.windows, then.tokens
        self._parts.optimizer.zero_grad(set_to_none=True)

    def checkpoint_before(self, step: int) -> Snapshot | None:
        """Reads the newest valid checkpoint of a step before `step`; None if there is none."""
        self._saver.wait()
        path = self._group.agree(lambda: self._path_before(step))
        return None if path is None else read_snapshot(verify(path))

    def _path_before(self, step: int) -> Path | None:
        for path in self._parts.checkpoints.newest_first():
            try:
                found = read_snapshot(verify(path))
            except DamagedError:
                continue
            if found.progress.step < step:
                return path
        return None

    def _take(self) -> Snapshot:
        return capture(self._parts, self._progress, self._generators)

    # --- on disk --------------------------------------------------------------------------------------------

    def save_if_due(self, held_out_loss: float | None = None) -> None:
        """Starts to write a checkpoint, if one is due or if these weights were just evaluated.

        One that the disk fails to write is left out with a warning.

        Raises:
            EliteError: OUTPUT_FULL, OUTPUT_UNWRITABLE, if recovery is off; OUTPUT_FULL, at a Stop.
        """
        self._check()
        if held_out_loss is None and not self._group.agree(self._is_due):
            return
        self.keep()
        # Before the write: one that fails brings the next one forward.
        self._saved_at, self._interval = time.monotonic(), self._every
        self._write(self.snapshot, held_out_loss)

    def _is_due(self) -> bool:
        is_time = time.monotonic() - self._saved_at >= self._interval
        return is_time and not self._saver.busy

    def save_now(self) -> str:
        """Writes a checkpoint, waits until it is complete, and returns its place in words.

        Raises:
            EliteError: OUTPUT_FULL, at a Stop or if recovery is off; OUTPUT_UNWRITABLE, if the disk fails repeatedly.
        """
        saved = self._write(self._take(), None, wait=True)
        assert saved is not None
        return f"checkpoint {saved.path.relative_to(self._session.run.path).as_posix()}"

    def save_on_command(self) -> str:
        """Writes a checkpoint for a person, and returns its place, or in words why the disk did not take it.

        Raises:
            EliteError: see `save_now`, if recovery is off; OUTPUT_FULL, at a Stop.
        """
        return self._save_or_warn()

    def save_last(self) -> None:
        """Writes the checkpoint of a completed training, whose result is still to be saved, or warns.

        Raises:
            EliteError: see `save_on_command`.
        """
        self._save_or_warn()

    def _save_or_warn(self) -> str:
        try:
            return self.save_now()
        except EliteError as error:
            if not (self._recovers and is_disk_failing(error)):
                raise
            return self._leave_out(error)

    def save_snapshot(self) -> SavedCheckpoint | None:
        """Writes the snapshot in memory unless that or a later state is on disk; returns the newest on disk.

        It does not touch the GPU, so it works after the GPU is lost.
        """
        self._settle()
        if self._saver.last is None or self._saver.last.step < self.snapshot.progress.step:
            self._write(self.snapshot, None, wait=True)
        return self._saver.last

    def await_journal(self) -> None:
        """Waits while the disk has no space even for the journal.

        Raises:
            EliteError: OUTPUT_FULL, if recovery is off or at a Stop.
        """
        if self._session.journal_waits:
            error = OUTPUT_FULL(path=self._session.run.path, free="no space", needed="room for its journal")
            if not self._recovers:
                raise error
            self._space.wait(_JOURNAL_BYTES, error)

    def close(self) -> None:
        """Waits for the checkpoint that is being written."""
        self._saver.close()

    def _write(self, snapshot: Snapshot, held_out_loss: float | None, *, wait: bool = False) -> SavedCheckpoint | None:
        failures = 0
        while True:
            self._session.check_run()
            try:
                self._saver.begin(snapshot, held_out_loss)
                if wait:
                    self._saver.wait()
            except EliteError as error:
                failures += is_disk_failing(error)
                if wait and failures == _ATTEMPTS:
                    raise
                self._find_room(snapshot, error)
            else:
                return self._saver.last

    def _check(self) -> None:
        """Handles a failure of the last background write; writes again only where there was no space."""
        if self._group.agree(self._had_no_room):
            self.keep()
            self._write(self.snapshot, None)

    def _had_no_room(self) -> bool:
        try:
            self._saver.check()
        except EliteError as error:
            self._find_room(self.snapshot, error)
            return not is_disk_failing(error)
        return False

    def _settle(self) -> None:
        try:
            self._saver.wait()
        except EliteError as error:
            self._find_room(self.snapshot, error)

    def _find_room(self, snapshot: Snapshot, error: EliteError) -> None:
        if self._recovers and is_disk_full(error):
            self._space.make(snapshot.size, error)
        elif self._recovers and is_disk_failing(error):
            self._leave_out(error)
        else:
            raise error

    def _leave_out(self, error: EliteError) -> str:
        self._interval = min(self._every, _RETRY_SECONDS)
        text = f"a checkpoint was not saved: {error.message}"
        self._session.emit(
            WarningRaised(
                code="checkpoint-not-saved",
                text=text,
                hint="the disk may be failing: the run goes on and tries the next one; the last complete one is safe",
            )
        )
        return text

    def _announce(self, saved: SavedCheckpoint) -> None:
        path = saved.path.relative_to(self._session.run.path).as_posix()
        self._session.emit(CheckpointSaved(step=saved.step, path=path, bytes=saved.bytes, seconds=saved.seconds))
