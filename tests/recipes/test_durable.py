"""What a run's last event promises is on the disk before the event: contents synced, names in synced folders.

fsync is watched from outside. A file counts as durable if its content is what it was when its inode was last synced,
and its name if the folder had that name, for that inode, when the folder was last synced.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from pathlib import Path

import pytest
from support.session import RecordingSession

from engine import atomic_dir, durable, whole_file
from engine.config import from_mapping
from engine.protocol.events import RunFinished
from engine.recipes.fine_tune import train
from engine.runs.run_directory import RunDirectory

PROCESS_FILES = {"events.jsonl", "engine.log", "process.json", "control.sock"}
"""Written by the process around the recipe, which is not part of this test."""


class Disk:
    """What would be left after a power loss."""

    def __init__(self) -> None:
        self.contents: dict[int, str] = {}
        self.names: dict[int, dict[str, int]] = {}
        self._fsync = os.fsync

    def fsync(self, descriptor: int) -> None:
        self._fsync(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        inode = os.fstat(descriptor).st_ino
        if path.is_dir():
            self.names[inode] = {entry.name: entry.inode() for entry in os.scandir(path)}
        else:
            self.contents[inode] = digest(path)

    def lost(self, root: Path) -> list[str]:
        """Files below a folder that a power loss now would take away or leave with another content."""
        lost = []
        for path in sorted(root.rglob("*")):
            if path.name in PROCESS_FILES or path.is_socket():
                continue
            inode, parent = path.stat().st_ino, path.parent.stat().st_ino
            if self.names.get(parent, {}).get(path.name) != inode:
                lost.append(f"{path.relative_to(root)}: its name")
            if path.is_file() and self.contents.get(inode) != digest(path):
                lost.append(f"{path.relative_to(root)}: its content")
        return lost


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def disk(monkeypatch):
    disk = Disk()
    monkeypatch.setattr(os, "fsync", disk.fsync)
    return disk


def configured(tmp_path: Path):
    source = tmp_path / "source"
    source.mkdir()
    for number in range(12):
        (source / f"module_{number}.py").write_text(f"def function_{number}(x):\n    return x + {number}\n\n" * 30)
    return from_mapping(
        {
            "model": {"name": "demo", "device": "cpu"},
            "data": {"repositories": [str(source)], "near_duplicates": "keep"},
            "lora": {"rank": 2},
            "training": {"context": 128, "tokens_per_update": 128, "max_steps": 1, "evaluate_tokens": 64},
            "evaluation": {"at_end": False},
            "output": {"directory": str(tmp_path / "out")},
        }
    )


def test_a_completed_run_survives_a_power_loss(tmp_path, disk):
    config = configured(tmp_path)
    lost = []

    class Session(RecordingSession):
        def emit(self, event):
            if isinstance(event, RunFinished):
                lost.extend(disk.lost(self.run.path))
            super().emit(event)

    session = Session(config=config, run=RunDirectory.create(config))
    train(session)
    assert isinstance(session.events[-1], RunFinished)
    assert {path.name for path in session.run.path.iterdir()} >= {"adapter", "report.md", "plan.json", "config.yaml"}
    assert lost == []


def test_a_file_is_durable_when_it_is_replaced(tmp_path, disk):
    path = tmp_path / "file"
    for text in ("first", "second"):
        whole_file.replace_text(path, text)
        assert disk.lost(tmp_path) == []
    path.write_text("third")
    assert disk.lost(tmp_path) == ["file: its content"]


class Ended(BaseException):
    """Stands for the end of the process."""


def interrupt_after(calls: int, patch: pytest.MonkeyPatch) -> None:
    """Ends the process at the system call after so many."""
    left = iter(range(calls))

    def interrupted(function):
        def call(*args, **kwargs):
            if next(left, None) is None:
                raise Ended
            return function(*args, **kwargs)

        return call

    for name in ("rename", "replace", "fsync"):
        patch.setattr(os, name, interrupted(getattr(os, name)))


def test_a_sealed_folder_is_complete_or_the_one_before(tmp_path, monkeypatch):
    """The process ends at every system call that names, in turn."""
    final = tmp_path / "adapter"

    def fill(text):
        aside = tmp_path / ".adapter.new"
        aside.mkdir()
        (aside / "weights.safetensors").write_text(text)
        return aside

    atomic_dir.seal(final, fill("old"), {})
    seen = set()
    for end in range(9):
        with monkeypatch.context() as patch, contextlib.suppress(Ended):
            interrupt_after(end, patch)
            atomic_dir.seal(final, fill(f"new {end}"), {})
        atomic_dir.heal(final)
        atomic_dir.verify(final)
        seen.add((final / "weights.safetensors").read_text())
        for leftover in tmp_path.glob(".adapter.*"):
            shutil.rmtree(leftover)
    assert "old" in seen
    assert "new 8" in seen


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_fsync_is_written_all_the_same(tmp_path, monkeypatch, number):
    def refuse(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    whole_file.replace_text(tmp_path / "file", "text")
    assert (tmp_path / "file").read_text() == "text"


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_failed_sync_is_no_success(tmp_path, monkeypatch, number):
    (tmp_path / "file").write_text("before")

    def fail(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=os.strerror(number)):
        durable.sync_tree(tmp_path)
    with pytest.raises(OSError, match=os.strerror(number)):
        whole_file.replace_text(tmp_path / "file", "after")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
