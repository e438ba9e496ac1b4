"""What can be done with a run from here, and a journal that is read in pieces."""

from __future__ import annotations

import os

import pytest

from engine import config as run_config
from engine.launch.handle import RunHandle
from engine.protocol.events import LogLine, RunFinished
from engine.runs.access import Access, look
from engine.runs.control import ControlServer
from engine.runs.journal import JournalReader, JournalWriter
from engine.runs.process_record import ProcessRecord, write_record
from engine.runs.run_directory import RunDirectory


@pytest.fixture
def run(tmp_path):
    mapping = {"data": {"repositories": [str(tmp_path)]}, "output": {"directory": str(tmp_path / "out")}}
    return RunDirectory.create(run_config.from_mapping(mapping))


def test_before_it_has_a_process(run):
    assert look(run) == Access(here=True)


def test_a_live_run_of_this_machine(run):
    write_record(run.process_path, ProcessRecord.of_process(os.getpid(), 0))
    assert look(run) == Access(here=True, refusal="it has no control socket in its folder")
    server = ControlServer(run.socket_path, lambda _: None)
    try:
        assert look(run) == Access(here=True)
    finally:
        server.close()


def test_a_run_of_another_machine(run):
    write_record(run.process_path, ProcessRecord(pid=os.getpid(), start="1", place="elsewhere", first_seq=0))
    found = look(run)
    assert not found.here
    assert "another machine" in found.refusal


def test_a_run_of_another_user(run, monkeypatch):
    server = ControlServer(run.socket_path, lambda _: None)
    try:
        monkeypatch.setattr(os, "getuid", lambda: 123_456)
        assert look(run).refusal == "another user started it"
    finally:
        server.close()


def write(run, count):
    journal = JournalWriter(run.journal_path, run.id)
    for number in range(count):
        journal.append(LogLine(level="info", text=f"{number} " + "x" * (number % 50)))
    journal.close()


@pytest.mark.parametrize("limit", [1, 100, 1000, 10_000_000])
def test_a_journal_in_pieces_is_the_whole_journal(run, limit):
    write(run, 200)
    whole = JournalReader(run.journal_path).poll()
    reader = JournalReader(run.journal_path)
    found = reader.poll(limit)
    polls = 1
    while reader.behind:
        found += reader.poll(limit)
        polls += 1
    assert [envelope.seq for envelope in found] == [envelope.seq for envelope in whole] == list(range(200))
    assert polls == 1 if limit > 100_000 else polls > 1
    assert reader.damaged == 0


def test_a_half_written_line_is_not_lost_between_two_pieces(run):
    write(run, 3)
    data = run.journal_path.read_bytes()
    run.journal_path.write_bytes(data[:-5])
    reader = JournalReader(run.journal_path)
    found = []
    for _ in range(10):
        found += reader.poll(20)
    assert len(found) == 2
    run.journal_path.write_bytes(data)
    assert [envelope.seq for envelope in reader.poll(20)] == [2]
    assert reader.damaged == 0


def test_a_dead_run_is_not_declared_before_its_journal_was_read(run, monkeypatch):
    from engine.launch import handle as handle_module

    write(run, 50)
    journal = JournalWriter(run.journal_path, run.id)
    journal.append(RunFinished(status="completed", steps=1, seconds=1.0))
    journal.close()
    monkeypatch.setattr(handle_module, "_READ_AT_ONCE", 500)
    handle = RunHandle.attach(run)
    events = []
    while handle.ending is None:
        events += handle.poll()
    assert [envelope.seq for envelope in events] == list(range(51))
    assert handle.ending.status == "completed"
