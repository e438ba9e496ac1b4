"""Folders of files that are complete on disk or not there at all, and that notice when they were damaged.

A checkpoint is written to a hidden folder, each file is synced and read back, and only then is the folder
renamed to step-000123. manifest.json holds the size and SHA-256 of each file. What the files mean is
engine.training.state's business.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engine import errors

MANIFEST = "manifest.json"
FORMAT = 1
_NAME = re.compile(r"step-(\d{6,})")


class CheckpointDamagedError(Exception):
    """A checkpoint cannot be trusted. The message says which file and why."""


@dataclass(frozen=True, kw_only=True)
class SavedCheckpoint:
    """A checkpoint that was written and read back."""

    path: Path
    step: int
    bytes: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint whose files are what its manifest says."""

    path: Path
    step: int

    def read(self, name: str) -> bytes:
        """The content of one file."""
        return (self.path / name).read_bytes()


class CheckpointFolder:
    """The checkpoints of one run, oldest to newest, at most `keep` of them."""

    def __init__(self, path: Path, keep: int) -> None:
        self._path = path
        self._keep = keep

    def save(self, step: int, files: Mapping[str, bytes]) -> SavedCheckpoint:
        """Writes a checkpoint, replacing one of the same step, and deletes what is older than the newest `keep`.

        Raises:
            EliteError: OUTPUT_FULL, OUTPUT_UNWRITABLE; the checkpoints that were there are still there.
        """
        started = time.monotonic()
        final = self._path / f"step-{step:06d}"
        aside = self._path / f".{final.name}.new"
        try:
            size = self._write(aside, step, files)
            _replace(final, aside)
            _sync(self._path)
        except OSError as error:
            shutil.rmtree(aside, ignore_errors=True)
            raise _writing_failed(final, files, error) from error
        self._prune()
        return SavedCheckpoint(path=final, step=step, bytes=size, seconds=time.monotonic() - started)

    def _write(self, folder: Path, step: int, files: Mapping[str, bytes]) -> int:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        entries = {name: {"bytes": len(data), "sha256": _digest(data)} for name, data in files.items()}
        manifest = json.dumps({"format": FORMAT, "step": step, "files": entries}, indent=1).encode()
        for name, data in {**files, MANIFEST: manifest}.items():
            _write_synced(folder / name, data)
        _sync(folder)
        try:
            verify(folder)
        except CheckpointDamagedError as error:
            raise OSError(errno.EIO, f"what was read back differs: {error}") from error
        return sum(len(data) for data in files.values()) + len(manifest)

    def newest_first(self) -> list[Path]:
        """The checkpoints' folders, whether valid or not."""
        found = [(int(match[1]), p) for p in self._entries() if (match := _NAME.fullmatch(p.name))]
        return [path for _, path in sorted(found, reverse=True)]

    def _entries(self) -> list[Path]:
        return list(self._path.iterdir()) if self._path.is_dir() else []

    def _prune(self) -> None:
        for path in self.newest_first()[self._keep :]:
            shutil.rmtree(path, ignore_errors=True)
        for path in self._entries():
            if path.name.startswith(".step-"):  # left behind by a process that was killed while it wrote
                shutil.rmtree(path, ignore_errors=True)


def verify(folder: Path) -> Checkpoint:
    """The checkpoint in a folder, after every byte of it was compared with its manifest.

    Raises:
        CheckpointDamagedError: a file is missing, shorter, longer or different.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        version, step, entries = manifest["format"], int(manifest["step"]), dict(manifest["files"])
        expected = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in entries.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointDamagedError(f"{MANIFEST} cannot be read ({error})") from error
    if version != FORMAT:
        raise CheckpointDamagedError(f"{MANIFEST} is of format {version}, this program reads {FORMAT}")
    for name, (size, digest) in expected.items():
        try:
            data = (folder / name).read_bytes()
        except OSError as error:
            raise CheckpointDamagedError(f"{name} cannot be read ({error.strerror})") from error
        if len(data) != size:
            raise CheckpointDamagedError(f"{name} has {len(data)} bytes instead of {size}")
        if _digest(data) != digest:
            raise CheckpointDamagedError(f"{name} has another SHA-256 than when it was written")
    return Checkpoint(path=folder, step=step)


def _replace(final: Path, aside: Path) -> None:
    """Puts a complete folder in place. A folder cannot be renamed over a full one, so an old one steps aside."""
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    aside.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _writing_failed(path: Path, files: Mapping[str, bytes], error: OSError) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(path.parent).free
        needed = sum(len(data) for data in files.values())
        return errors.OUTPUT_FULL(path=path, free=f"{free / 1e6:,.0f} MB", needed=f"{needed / 1e6:,.0f} MB")
    return errors.OUTPUT_UNWRITABLE(path=path, problem=error.strerror or error)
