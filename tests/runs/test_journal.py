"""The journal under torn lines, garbage, a reader beside the writer, and a full disk."""

from __future__ import annotations

import errno
import os
import random
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.mounts import needs_mount, run_mounted

from engine.protocol.events import LogLine, PhaseChanged, StepCompleted, StepProgress
from engine.protocol.wire import encode_event
from engine.runs.journal import JournalReader, JournalWriter, next_seq, read_ends
from tests.runs.conftest import run_alone


def line(text):
    return LogLine(level="info", text=text)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "events.jsonl"


def write(path, *texts):
    writer = JournalWriter(path, "r")
    envelopes = [writer.append(line(text)) for text in texts]
    writer.close()
    return envelopes


def test_numbering_continues(path):
    assert [e.seq for e in write(path, "a", "b")] == [0, 1]
    assert [e.seq for e in write(path, "c")] == [2]
    assert [e.event.text for e in JournalReader(path).poll()] == ["a", "b", "c"]


def test_a_reader_waits_for_the_rest_of_a_line(path):
    write(path, "a")
    whole = path.read_bytes()
    path.write_bytes(whole[:10])
    reader = JournalReader(path)
    assert reader.poll() == []
    path.write_bytes(whole)
    assert len(reader.poll()) == 1
    assert reader.damaged == 0


@given(kept=st.integers(min_value=0, max_value=80))
def test_a_torn_last_line_never_damages_the_next(tmp_path_factory, kept):
    path = tmp_path_factory.mktemp("journal") / "events.jsonl"
    write(path, "a")
    torn = path.read_bytes().replace(b'"a"', b'"b"').replace(b'"seq":0', b'"seq":1')[:kept]
    with path.open("ab") as file:
        file.write(torn)
    watching = JournalReader(path)
    watching.poll()
    assert [e.seq for e in write(path, "c")] == [1]
    reader = JournalReader(path)
    assert [e.event.text for e in reader.poll()] == ["a", "c"]
    assert reader.damaged == 0
    assert [e.event.text for e in watching.poll()] == ["c"]


def test_a_last_line_that_lacks_only_its_newline_is_kept(path):
    write(path, "a", "b")
    path.write_bytes(path.read_bytes()[:-1])
    assert write(path, "c")[0].seq == 2
    assert [e.event.text for e in JournalReader(path).poll()] == ["a", "b", "c"]


def test_damaged_lines_are_counted_and_skipped(path):
    write(path, "a")
    with path.open("ab") as file:
        file.write(
            b"garbage\n\xff\xfe\n[]\n" + b'{"schema":1,"run":"r","seq":1,"time":1' + b"0" * 400 + b',"kind":"X"}\n'
        )
    write(path, "b")
    reader = JournalReader(path)
    assert [e.event.text for e in reader.poll()] == ["a", "b"]
    assert reader.damaged == 4


def test_numbering_is_found_behind_a_megabyte_of_garbage(path):
    write(path, "a")
    with path.open("ab") as file:
        file.write(b"x" * 300_000 + b"\n" + b"\n" * 300_000 + b"\0" * 400_000)
    assert next_seq(path) == 1
    assert write(path, "b")[0].seq == 1


def test_mutated_bytes_never_raise(path):
    write(path, *"abcdefgh")
    original = path.read_bytes()
    generator = random.Random(0)
    for _ in range(1000):
        data = bytearray(original)
        for _ in range(generator.randint(1, 8)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        path.write_bytes(data)
        reader = JournalReader(path)
        found = reader.poll()
        assert len(found) + reader.damaged >= 1
        read_ends(path, 200)
        JournalWriter(path, "r").close()


@settings(max_examples=200)
@given(data=st.binary(max_size=300))
def test_any_bytes_are_read_and_written_after(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("journal") / "events.jsonl"
    path.write_bytes(data)
    JournalReader(path).poll()
    write(path, "after")
    assert JournalReader(path).poll()[-1].event == line("after")


def test_reader_beside_writer_misses_nothing(path):
    count, found = 3000, []
    writer = JournalWriter(path, "r")

    def fill():
        for number in range(count):
            writer.append(line("x" * (number % 500)))

    thread = threading.Thread(target=fill)
    reader = JournalReader(path)
    thread.start()
    while thread.is_alive():
        found += reader.poll()
    thread.join()
    found += reader.poll()
    writer.close()
    assert [e.seq for e in found] == list(range(count))
    assert reader.damaged == 0


def test_threads_share_a_writer(path):
    writer = JournalWriter(path, "r")
    threads = [threading.Thread(target=lambda: [writer.append(line("x")) for _ in range(300)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close()
    assert [e.seq for e in JournalReader(path).poll()] == list(range(1200))


def test_progress_is_thinned_and_still_numbered(path):
    writer = JournalWriter(path, "r")
    for done in range(50):
        writer.append(StepProgress(step=1, stage="forward", done=done, total=50))
    last = writer.append(line("end"))
    writer.close()
    kinds = [e.kind for e in JournalReader(path).poll()]
    assert kinds == ["StepProgress", "LogLine"]
    assert last.seq == 50


APPEND_TO_FULL_DISK = """
import resource, sys
from pathlib import Path
from engine.protocol.events import PhaseChanged
from engine.runs.journal import JournalWriter
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    JournalWriter(Path(sys.argv[1]), "r").append(PhaseChanged(phase="data"))
except OSError as error:
    print(error.strerror)
"""


def test_a_write_that_fails_leaves_no_half_line(path):
    write(path, "a")
    size = path.stat().st_size
    # A limit on the file's size stands for a full disk: the write is cut short, then fails.
    assert run_alone(APPEND_TO_FULL_DISK, path, size + 20) == os.strerror(errno.EFBIG)
    assert path.stat().st_size == size
    assert write(path, "b")[0].seq == 1


ON_A_FULL_DISK = """
import shutil, sys
from pathlib import Path
from engine.protocol.events import LogLine
from engine.runs.journal import JournalReader, JournalWriter

mount = Path(sys.argv[1])
writer = JournalWriter(mount / "events.jsonl", "run")
writer.append(LogLine(level="info", text="first"))
(mount / "ballast").write_bytes(b"x" * (shutil.disk_usage(mount).free))
for number in range(300):
    writer.append(LogLine(level="info", text=f"{number} " + 40 * "x"))
assert writer.waits
written = JournalReader(mount / "events.jsonl").poll()
assert [e.seq for e in written] == list(range(len(written))) and len(written) < 301
(mount / "ballast").unlink()
writer.append(LogLine(level="info", text="last"))
assert not writer.waits
writer.close()
reader = JournalReader(mount / "events.jsonl")
assert [e.seq for e in reader.poll()] == list(range(302)) and reader.damaged == 0
print("complete")
"""


@needs_mount
def test_on_a_full_disk_events_wait_in_order_for_room(tmp_path):
    assert run_mounted(ON_A_FULL_DISK, tmp_path, "200k").splitlines()[-1] == "complete"


def test_a_flipped_bit_is_noticed_or_changes_nothing(path):
    events = [
        line("text é"),
        StepCompleted(
            step=3, total_steps=9, epoch=0.5, loss=2.25, lr=1e-4, grad_norm=1.0, tokens=128, tokens_per_second=99.5
        ),
    ]
    writer = JournalWriter(path, "run")
    for event in events:
        writer.append(event)
    writer.close()
    content = path.read_bytes()
    expected = JournalReader(path).poll()
    unnoticed = 0
    for bit in range(len(content) * 8):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(flipped))
        reader = JournalReader(path)
        found = reader.poll()
        assert reader.damaged or len(found) < 2 or found == expected
        unnoticed += found == expected
    assert unnoticed < len(content) // 4


def test_lines_without_a_checksum_are_read(path):
    writer = JournalWriter(path, "run")
    envelope = writer.append(line("a"))
    writer.close()
    path.write_text(encode_event(envelope) + "\n")
    assert JournalReader(path).poll() == [envelope]


class PageCache:
    """An fsync that fails as Linux's does: what it was to write is lost and counts as written.

    `lost()` is the file as a power loss would leave it.
    """

    def __init__(self, monkeypatch, path, faults):
        self._path, self._faults, self._fsync, self._pwrite = path, list(faults), os.fsync, os.pwrite
        self.disk, self._dirty_from = b"", 0
        monkeypatch.setattr(os, "fsync", self.fsync)
        monkeypatch.setattr(os, "pwrite", self.pwrite)

    def fsync(self, descriptor):
        content = self._path.read_bytes()
        fault = self._faults.pop(0) if self._faults else None
        if fault is None:
            self.disk = self.disk[: self._dirty_from].ljust(self._dirty_from, b"\0") + content[self._dirty_from :]
        self._dirty_from = len(content)
        if fault is not None:
            raise OSError(fault, os.strerror(fault))
        self._fsync(descriptor)

    def pwrite(self, descriptor, data, offset):
        self._dirty_from = min(self._dirty_from, offset)
        return self._pwrite(descriptor, data, offset)


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EINVAL])
@pytest.mark.parametrize("times", [1, 3])
def test_a_failed_sync_neither_ends_the_run_nor_loses_what_came_before_it(path, monkeypatch, fault, times):
    cache = PageCache(monkeypatch, path, [fault] * times)
    writer = JournalWriter(path, "r")
    for number in range(times + 2):
        writer.append(PhaseChanged(phase=f"phase {number}"))
    if fault != errno.EINVAL:
        assert cache.disk == path.read_bytes()
    assert not writer.waits
    assert (writer.take_problem() != "") == (fault == errno.EIO)
    assert writer.take_problem() == ""
    writer.close()


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EIO])
def test_a_journal_is_closed_on_a_disk_that_fails(path, monkeypatch, fault):
    writer = JournalWriter(path, "r")
    writer.append(line("last"))
    PageCache(monkeypatch, path, [fault] * 9)
    writer.close()
    assert writer.waits == (fault == errno.ENOSPC)
    assert bool(writer.take_problem()) == (fault == errno.EIO)


def test_a_half_line_that_could_not_be_removed_is_removed_before_the_next(path, monkeypatch):
    writer = JournalWriter(path, "r")
    writer.append(line("a"))
    write, truncate = os.write, os.ftruncate

    def torn(descriptor, data):
        write(descriptor, data[: len(data) // 2])
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def refuse(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "write", torn)
    monkeypatch.setattr(os, "ftruncate", refuse)
    writer.append(line("b"))
    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(os, "ftruncate", truncate)
    writer.append(line("c"))
    writer.close()
    reader = JournalReader(path)
    assert [e.event.text for e in reader.poll()] == ["a", "b", "c"]
    assert reader.damaged == 0
