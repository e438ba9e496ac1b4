"""A run is deleted whole, or not at all; nothing else ever is."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading

import pytest

from engine import config as run_config
from engine.errors import EliteError
from engine.protocol.events import RunFinished
from engine.runs.deletion import delete_run
from engine.runs.journal import JournalWriter
from engine.runs.process_record import ProcessRecord, write_record
from engine.runs.run_directory import RunDirectory


@pytest.fixture
def run(tmp_path):
    """A run that has ended, with a checkpoint and a link to something precious."""
    mapping = {"data": {"repositories": [str(tmp_path)]}, "output": {"directory": str(tmp_path / "out")}}
    run = RunDirectory.create(run_config.from_mapping(mapping))
    journal = JournalWriter(run.journal_path, run.id)
    journal.append(RunFinished(status="completed", steps=1, seconds=1.0))
    journal.close()
    (run.checkpoints_path / "step-000001").mkdir(parents=True)
    (run.checkpoints_path / "step-000001" / "state").write_bytes(b"x" * 1000)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    (run.path / "link").symlink_to(precious)
    return run


def refused(run, code):
    with pytest.raises(EliteError) as caught:
        delete_run(run)
    assert caught.value.code == code
    return caught.value


def test_all_of_a_run_goes_and_nothing_beside_it(run, tmp_path):
    other = RunDirectory.create(run.load_config())
    delete_run(run)
    assert not run.path.exists()
    assert [path.name for path in run.path.parent.iterdir()] == [other.id]
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "years of work"


def test_a_live_run_is_never_deleted(run):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        write_record(run.process_path, ProcessRecord.of_process(process.pid, 1))
        assert "still active" in refused(run, "run-still-active").message
        process.communicate(b"\n")
    assert run.path.is_dir()
    # Its process has gone, and it said its last word before: whatever it was, it is not active.
    delete_run(run)


def test_a_run_that_lives_on_another_machine_is_not_deleted(run):
    write_record(run.process_path, ProcessRecord(pid=1, start="1", place="elsewhere", first_seq=1))
    refused(run, "run-still-active")
    os.utime(run.process_path, (0, 0))
    delete_run(run)
    assert not run.path.exists()


@pytest.mark.parametrize("what", ["no run", "elsewhere", "link"])
def test_only_folders_of_runs_are_deleted(run, tmp_path, what):
    if what == "no run":
        run.config_path.unlink()
        target = run
    elif what == "elsewhere":
        target = RunDirectory(run.path.rename(tmp_path / run.id))
    else:
        link = run.path.with_name("20260101-000000-link-0000")
        link.symlink_to(run.path)
        target = RunDirectory(link)
    refused(target, "run-undeletable")
    assert target.path.exists()


def test_what_an_interrupted_deletion_left_is_removed_with_the_next(run):
    leftover = run.path.with_name(f".deleted-{run.id}-aaaa")
    leftover.mkdir()
    (leftover / "config.yaml").write_text("x")
    kept = run.path.with_name(".something-else")
    kept.mkdir()
    delete_run(run)
    assert not leftover.exists()
    assert kept.exists()


def test_who_waits_to_resume_it_finds_it_gone(run, monkeypatch):
    """The lock that launching takes is held while the folder is moved; who gets it after that must not launch."""
    found = []
    waits = threading.Event()
    flock = fcntl.flock

    def announced(fd, operation):
        if threading.current_thread() is waiting:
            waits.set()
        flock(fd, operation)

    def resume():
        try:
            with run.launching():
                found.append("launched")
        except EliteError as error:
            found.append(error.code)

    monkeypatch.setattr(fcntl, "flock", announced)
    waiting = threading.Thread(target=resume)
    with run.launching():
        waiting.start()
        waits.wait(20)
        run.path.rename(run.path.with_name(".deleted-x"))
    waiting.join()
    assert found == ["run-unknown"]


def test_a_disk_that_refuses_is_told(run, monkeypatch):
    import shutil

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path / "checkpoints"))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    error = refused(run, "run-undeletable")
    assert "Permission denied" in error.message
    # It is not there by halves: the name is free.
    assert not run.path.exists()


def engine(*arguments, text=""):
    return subprocess.run(
        [sys.executable, "-m", "engine", "delete", *arguments], input=text, capture_output=True, text=True, check=False
    )


def test_the_command_deletes_only_when_it_is_told_to(run):
    done = engine(str(run.path))
    assert (done.returncode, run.path.is_dir()) == (2, True)
    assert "pass --yes" in done.stderr
    done = engine(str(run.path), "--yes", "--json")
    assert (done.returncode, run.path.exists()) == (0, False)
    assert json.loads(done.stdout) == {"deleted": run.id, "path": str(run.path)}
    done = engine(str(run.path), "--yes")
    assert done.returncode == 2
    assert "no run matches" in done.stderr
