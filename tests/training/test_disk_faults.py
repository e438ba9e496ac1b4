"""A disk that fails once, or repeatedly, under a run that trains; and a run directory that goes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from support.runs import build, new_session

from engine.errors import TRAINING_FAILED, EliteError
from engine.errors.runs import OUTPUT_FULL, OUTPUT_UNWRITABLE, RUN_MOVED
from engine.launch.child import describe_failure
from engine.protocol.commands import Stop
from engine.protocol.events import CheckpointSaved, RecoveryTaken, StepCompleted, WarningRaised
from engine.runs.held_directory import HeldDirectory
from engine.training.checkpoints import verify
from engine.training.disk_space import DiskSpace
from engine.training.loop import fit

OFTEN = {"every_minutes": 1e-9}


class FailingDisk:
    """Fails fsync of files below a folder, from the first call on, so many times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, below: Path, number: int, times: int) -> None:
        self.left = times
        self._below, self._number, self._fsync = str(below), number, os.fsync
        monkeypatch.setattr(os, "fsync", self._fail)

    def _fail(self, descriptor: int) -> None:
        if self.left and str(Path(f"/proc/self/fd/{descriptor}").readlink()).startswith(self._below):
            self.left -= 1
            raise OSError(self._number, os.strerror(self._number))
        self._fsync(descriptor)


def warnings(session):
    return [event.code for event in session.of(WarningRaised)]


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EROFS])
def test_a_checkpoint_that_fails_is_left_to_the_next_one(tmp_path, monkeypatch, number):
    session = new_session(tmp_path, checkpoint=OFTEN)
    parts, progress = build(session)
    FailingDisk(monkeypatch, session.run.checkpoints_path, number, 1)
    assert fit(session, parts, progress) == "completed"
    assert warnings(session) == ["checkpoint-not-saved"]
    saved = session.of(CheckpointSaved)
    assert saved[0].step > 1
    assert saved[-1].step == progress.total_steps
    assert verify(session.run.path / saved[-1].path).about["step"] == progress.total_steps


def test_a_disk_that_takes_no_checkpoint_does_not_end_the_training(tmp_path, monkeypatch):
    session = new_session(tmp_path, checkpoint=OFTEN)
    parts, progress = build(session)
    FailingDisk(monkeypatch, session.run.checkpoints_path, errno.EIO, 10**6)
    assert fit(session, parts, progress) == "completed"
    assert len(session.of(StepCompleted)) == progress.total_steps
    assert session.of(CheckpointSaved) == []
    assert set(warnings(session)) == {"checkpoint-not-saved"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_was_full_for_a_moment_loses_no_checkpoint(tmp_path, monkeypatch, number):
    session = new_session(tmp_path, checkpoint=OFTEN)
    parts, progress = build(session)
    FailingDisk(monkeypatch, session.run.checkpoints_path, number, 1)
    assert fit(session, parts, progress) == "completed"
    assert "checkpoint-not-saved" not in warnings(session)
    assert session.of(CheckpointSaved)[-1].step == progress.total_steps


def test_a_checkpoint_asked_for_is_refused_in_words_and_the_run_goes_on(tmp_path, monkeypatch):
    from engine.protocol.commands import SaveNow
    from engine.protocol.events import CommandAcked

    session = new_session(tmp_path, {2: [SaveNow(id="save")]})
    parts, progress = build(session)
    FailingDisk(monkeypatch, session.run.checkpoints_path, errno.EIO, 3)
    assert fit(session, parts, progress) == "completed"
    [answer] = [event for event in session.of(CommandAcked) if event.command_id == "save"]
    assert "was not saved" in answer.text


def test_a_stop_that_cannot_save_is_a_fault_of_the_training(tmp_path, monkeypatch):
    session = new_session(tmp_path, {2: [Stop(id="stop")]})
    parts, progress = build(session)
    FailingDisk(monkeypatch, session.run.checkpoints_path, errno.EIO, 10**6)
    with pytest.raises(EliteError) as caught:
        fit(session, parts, progress)
    assert caught.value.kind is OUTPUT_UNWRITABLE
    assert describe_failure(session.run, caught.value, "").exit_code == TRAINING_FAILED


def failing(number: int, times: int):
    left = iter(range(times))

    def write() -> str:
        if next(left, None) is not None:
            raise OSError(number, os.strerror(number))
        return "written"

    return write


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOSPC, errno.EDQUOT])
def test_a_file_that_must_be_there_is_written_again(tmp_path, number):
    session = new_session(tmp_path)
    parts, _ = build(session)
    assert DiskSpace(session, parts.checkpoints).until_written(failing(number, 3)) == "written"
    assert len(session.of(WarningRaised)) + len(session.of(RecoveryTaken)) <= 3


def test_a_disk_that_never_takes_a_file_ends_the_run_with_the_folder_named(tmp_path):
    session = new_session(tmp_path)
    parts, _ = build(session)
    with pytest.raises(EliteError) as caught:
        DiskSpace(session, parts.checkpoints).until_written(failing(errno.EIO, 10**6))
    assert caught.value.kind is OUTPUT_UNWRITABLE
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "No space left on device"), OUTPUT_FULL, OSError(5, "x")])
def test_faults_while_training_exit_with_4(tmp_path, fault):
    error = fault if isinstance(fault, OSError) else fault(path=tmp_path, free="no space", needed="more")
    assert describe_failure(new_session(tmp_path).run, error, "").exit_code == TRAINING_FAILED


@pytest.mark.parametrize("then", ["renamed", "replaced"])
@pytest.mark.parametrize("checkpoint", [OFTEN, {}], ids=["saving", "not-saving"])
def test_a_run_directory_that_goes_is_not_made_again(tmp_path, then, checkpoint):
    path, moved = tmp_path / "run", tmp_path / "moved"
    session = new_session(path, checkpoint=checkpoint)
    parts, progress = build(session)
    session.check_run = HeldDirectory(path).check
    emit = session.emit

    def emitting(event):
        emit(event)
        if isinstance(event, StepCompleted) and event.step == 2:
            path.rename(moved)
            if then == "replaced":
                path.mkdir()

    session.emit = emitting
    with pytest.raises(EliteError) as caught:
        fit(session, parts, progress)
    assert caught.value.kind is RUN_MOVED
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    if then == "replaced":
        assert list(path.iterdir()) == []
    else:
        assert not path.exists()
