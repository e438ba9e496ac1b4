"""Saves, lists and prunes the checkpoints of one run.

engine.training.state defines their content; engine.atomic_dir makes sure that they are complete.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from engine import atomic_dir, durable
from engine.atomic_dir import AtomicDir, DamagedError
from engine.errors import EliteError
from engine.errors.runs import OUTPUT_FULL, OUTPUT_UNWRITABLE
from engine.quantities import format_bytes

_NAME = re.compile(r"step-(\d{6,})")
_HIDDEN = re.compile(r"\.(step-\d{6,})\.(new|old|gone)")


@dataclass(frozen=True, kw_only=True)
class Retention:
    """Retention policy, which keeps the newest checkpoints, the best one, and one every `hours` hours."""

    newest: int = 2
    best: bool = True
    "Whether to keep the one with the lowest held-out loss, of those saved with an evaluation."
    hours: float = 0.0
    "Hours between checkpoints that are kept for their age; 0 keeps none for it."


@dataclass(frozen=True, kw_only=True)
class SavedCheckpoint:
    """A checkpoint that was written and verified."""

    path: Path
    step: int
    bytes: int
    seconds: float


class CheckpointFolder:
    """The checkpoints of one run."""

    def __init__(self, path: Path, retention: Retention) -> None:
        self.path = path
        self._retention = retention

    def save(
        self, step: int, files: Iterable[tuple[str, bytes]], held_out_loss: float | None = None
    ) -> SavedCheckpoint:
        """Writes a checkpoint, replaces one of the same step, and prunes old ones by the retention policy.

        Args:
            step: Its step.
            files: Names and contents, produced one at a time.
            held_out_loss: Held-out loss of exactly these weights; None if it was not measured.

        Raises:
            EliteError: OUTPUT_FULL, OUTPUT_UNWRITABLE; existing checkpoints are untouched.
        """
        started = time.monotonic()
        final = self.path / f"step-{step:06d}"
        about = {"step": step, "saved_at": time.time(), "held_out_loss": held_out_loss}
        try:
            # Without the parents: a run directory that was renamed or deleted is not made again.
            if not self.path.exists():
                self.path.mkdir()
                durable.sync_path(self.path.parent)
            size = atomic_dir.write(final, files, about)
        except OSError as error:
            raise writing_failed(final, error) from error
        self._prune()
        return SavedCheckpoint(path=final, step=step, bytes=size, seconds=time.monotonic() - started)

    def newest_first(self) -> list[Path]:
        """Lists the checkpoints' folders, valid or not."""
        found = [(int(match[1]), path) for path in self._entries() if (match := _NAME.fullmatch(path.name))]
        return [path for _, path in sorted(found, reverse=True)]

    def heal(self) -> None:
        """Repairs the folder after a process was killed while it replaced a checkpoint."""
        for path in self._entries():
            if match := _HIDDEN.fullmatch(path.name):
                with contextlib.suppress(OSError):
                    atomic_dir.heal(self.path / match[1])

    def keep_only_newest(self) -> int:
        """Deletes all but the newest valid checkpoint to free disk space; returns the number deleted."""
        valid = next((path for path in self.newest_first() if _is_valid(path)), None)
        gone = [path for path in self.newest_first() if path != valid] if valid is not None else []
        for path in gone:
            _remove(path)
        for path in self._leftovers():
            shutil.rmtree(path, ignore_errors=True)
        return len(gone)

    def _entries(self) -> list[Path]:
        return list(self.path.iterdir()) if self.path.is_dir() else []

    def _leftovers(self) -> list[Path]:
        return [path for path in self._entries() if _HIDDEN.fullmatch(path.name)]

    def _prune(self) -> None:
        stays = self._staying()
        for path in self.newest_first():
            if path not in stays:
                _remove(path)
        for path in self._leftovers():
            shutil.rmtree(path, ignore_errors=True)

    def _staying(self) -> set[Path]:
        newest_first = self.newest_first()
        stays = set(newest_first[: self._retention.newest])
        scores: list[tuple[float, Path]] = []
        last = -float("inf")
        for path in reversed(newest_first):
            try:
                about = atomic_dir.read_about(path)
            except DamagedError:
                continue
            if about["held_out_loss"] is not None:
                scores.append((float(about["held_out_loss"]), path))
            if self._retention.hours and float(about["saved_at"]) - last >= self._retention.hours * 3600:
                last = float(about["saved_at"])
                stays.add(path)
        if self._retention.best and scores:
            stays.add(min(scores)[1])
        return stays


class ReadOnlyCheckpoints(CheckpointFolder):
    """Checkpoints of a rank that leaves writing them to another rank."""

    def save(
        self,
        step: int,
        files: Iterable[tuple[str, bytes]],  # noqa: ARG002
        held_out_loss: float | None = None,  # noqa: ARG002
    ) -> SavedCheckpoint:
        """Writes nothing, and returns the checkpoint that another rank writes."""
        return SavedCheckpoint(path=self.path / f"step-{step:06d}", step=step, bytes=0, seconds=0.0)

    def heal(self) -> None:
        """Does nothing; the writing rank repairs the folder."""

    def keep_only_newest(self) -> int:
        """Deletes nothing; the writing rank does."""
        return 0


def verify(folder: Path) -> AtomicDir:
    """Verifies every byte of a checkpoint against its manifest, and its name against its step.

    Raises:
        DamagedError: the checkpoint differs from the one that was written.
    """
    found = atomic_dir.verify(folder)
    match = _NAME.fullmatch(folder.name)
    if match is None or found.about.get("step") != int(match[1]):
        raise DamagedError(f"it is the checkpoint of step {found.about.get('step')} under another name")
    return found


def _remove(path: Path) -> None:
    """Deletes a checkpoint. Renames it first, so that a killed process leaves no partial checkpoint under its name."""
    hidden = path.with_name(f".{path.name}.gone")
    with contextlib.suppress(OSError):
        path.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _is_valid(path: Path) -> bool:
    try:
        verify(path)
    except DamagedError:
        return False
    return True


def writing_failed(path: Path, error: OSError) -> EliteError:
    """Maps an OSError from writing a folder to a typed error."""
    if durable.is_full(error):
        with contextlib.suppress(OSError):
            free = format_bytes(shutil.disk_usage(path.parent).free)
            return OUTPUT_FULL(path=path, free=free, needed="more for a checkpoint")
        return OUTPUT_FULL(path=path, free="no space", needed="more for a checkpoint")
    return OUTPUT_UNWRITABLE(path=path, problem=error.strerror or error)
