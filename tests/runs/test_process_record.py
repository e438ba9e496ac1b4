"""Whether a run's process lives: recycled ids, zombies, other machines."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from engine.runs import process_record
from engine.runs.process_record import ProcessRecord, is_alive, process_start, read_record, write_record
from engine.runs.run_directory import RunDirectory
from tests.runs.conftest import drain


@pytest.fixture
def path(tmp_path):
    return tmp_path / "process.json"


def alive(path, record):
    write_record(path, record)
    assert read_record(path) == record
    return is_alive(path, record)


def test_this_process_lives_and_one_with_its_recycled_id_does_not(path):
    record = ProcessRecord.of_process(os.getpid(), 0)
    assert alive(path, record)
    assert not alive(path, replace(record, start="12345"))


def test_the_command_name_cannot_forge_the_state(path, tmp_path):
    program = tmp_path / "a) Z 1 (b"
    program.symlink_to(sys.executable)
    with subprocess.Popen([program, "-c", "import time; time.sleep(60)"]) as process:
        assert alive(path, ProcessRecord.of_process(process.pid, 0))
        process.kill()


def test_a_zombie_is_dead(path):
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    record = ProcessRecord.of_process(process.pid, 0)
    assert alive(path, record)
    os.kill(process.pid, signal.SIGKILL)
    while process_start(process.pid):
        time.sleep(0.01)
    assert not alive(path, record)
    process.wait()
    assert not alive(path, record)
    with pytest.raises(ProcessLookupError):
        ProcessRecord.of_process(process.pid, 0)


def test_another_machine_goes_by_the_heartbeat(path):
    record = replace(ProcessRecord.of_process(os.getpid(), 0), place="elsewhere", pid=2**22 + 1)
    assert alive(path, record)
    stale = time.time() - process_record.STALE_S - 60
    os.utime(path, (stale, stale))
    assert not is_alive(path, record)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"pid":1}', '{"pid":"1","start":"","place":"","first_seq":0}', "[" * 9999, "\0"]
)
def test_a_damaged_record_is_none(path, text):
    path.write_text(text)
    assert read_record(path) is None


def test_a_recycled_id_does_not_revive_a_dead_run(launch):
    handle = launch("vanish")
    drain(handle)
    record = read_record(handle.run.process_path)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as other:
        # As if the kernel had given the dead process's id to this one.
        write_record(handle.run.process_path, replace(record, pid=other.pid))
        assert handle.run.status() == "died"
        other.kill()


def test_a_run_whose_process_was_never_recorded(make_config):
    run = RunDirectory.create(make_config())
    assert run.status() == "starting"
    os.utime(run.config_path, (0, 0))
    assert run.status() == "died"
