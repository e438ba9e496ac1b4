"""Writes and reads the journal `events.jsonl`, one event per line, appended by the training process.

A reader may start an hour later, run on another machine that mounts the run directory, or read while a line is half
written. So the writer only appends complete lines. The reader takes a line only with its newline, counts damaged lines,
and never raises.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
import zlib
from typing import TYPE_CHECKING

from engine import durable, regular_file
from engine.protocol.events import (
    CheckpointSaved,
    EvalCompleted,
    Event,
    PhaseChanged,
    RunFailed,
    RunFinished,
    RunStarted,
    StepProgress,
)
from engine.protocol.wire import Envelope, ProtocolError, encode_event
from engine.runs.event_decoder import event_decoder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROGRESS_INTERVAL_S = 1.0
"""At most one StepProgress in this many seconds is written; the others only get a number."""

_DURABLE = (RunStarted, PhaseChanged, EvalCompleted, CheckpointSaved, RunFinished, RunFailed)
"""Rare events that must survive a power failure, and are therefore synced at once."""

_BLOCK = 1 << 16
_LONGEST_LINE = 16 << 20
"""Bytes without a newline that are damage: a reader would hold all of them, and read them again at every poll."""
_CHUNK = 1 << 20
"""Bytes that `read_events` holds at once."""
_MOST_WAITING = 10_000
"""Most lines that wait in memory while the disk is full or fails."""


_SEAL = re.compile(rb',"crc":"[0-9a-f]{8}"\}')
_SEAL_BYTES = len(',"crc":"01234567"}')


def seal_line(line: bytes) -> bytes:
    """Adds a CRC-32 as the last field of an event's line, to detect a flipped bit that leaves a valid number."""
    return b'%b,"crc":"%08x"}' % (line[:-1], zlib.crc32(line))


def decode_line(line: bytes) -> Envelope | None:
    """Decodes one line; None if it is damaged or of a newer schema. The checksum may be missing."""
    start = len(line) - _SEAL_BYTES
    if start >= 0 and _SEAL.fullmatch(line, start):
        seal = int(line[start + 8 : start + 16], 16)
        line = line[:start] + b"}"
        if zlib.crc32(line) != seal:
            return None
    try:
        return event_decoder().decode(line)
    except ProtocolError:
        return None


class JournalWriter:
    """Appends events to one run's journal. Only one process writes; its threads may share the writer.

    Opening it for a resumed run continues `seq` after the last valid line. It also removes a last line that a crash
    left half written, or adds its newline if nothing else is missing.

    While the disk is full or fails, lines wait in memory, in order, and are written once it takes them. What a failed
    sync may have dropped is written again before the next one.

    Raises:
        OSError: the journal cannot be written for another reason (engine.durable), or too many lines wait.
    """

    def __init__(self, path: Path, run_id: str) -> None:
        self._run = run_id
        self._lock = threading.Lock()
        self._progress_written = -PROGRESS_INTERVAL_S
        self._fd = regular_file.open_for_appending(path, reading=True)
        _mend_last_line(self._fd)
        self._seq = _next_seq(self._fd)
        self._path = path
        self._waiting: list[bytes] = []
        self._end = self._synced = os.fstat(self._fd).st_size
        self._sync_failed = self._is_full = self._is_named = False
        self._problem = ""

    @property
    def waits(self) -> bool:
        """Whether lines wait for disk space, in memory or for their sync."""
        return self._is_full

    def take_problem(self) -> str:
        """Returns how the disk failed since the last call, "" if it did not; a full disk is no failure."""
        problem, self._problem = self._problem, ""
        return problem

    @property
    def next_seq(self) -> int:
        """Number of the next event."""
        return self._seq

    def append(self, event: Event) -> Envelope:
        """Numbers the event and writes it; only numbers a StepProgress that comes too soon after the last one."""
        with self._lock:
            return self._append(event)

    def append_last(self, event: Event, timeout_s: float) -> Envelope | None:
        """Appends the last event of a process; returns None if another thread holds the journal for `timeout_s`."""
        if not self._lock.acquire(timeout=timeout_s):
            return None
        try:
            return self._append(event)
        finally:
            self._lock.release()

    def close(self) -> None:
        """Syncs and closes the journal. Returns normally where the disk fails: `waits` or `take_problem` tell."""
        with self._lock:
            if self._fd >= 0:
                self._write_waiting()
                self._sync()
                os.close(self._fd)
                self._fd = -1

    def _append(self, event: Event) -> Envelope:
        envelope = Envelope(run=self._run, seq=self._seq, time=time.time(), event=event)
        if self._is_due(event):
            self._waiting.append(seal_line(encode_event(envelope).encode()) + b"\n")
            self._write_waiting()
            if isinstance(event, _DURABLE) or self._sync_failed:
                self._sync()
        self._seq += 1
        return envelope

    def _is_due(self, event: Event) -> bool:
        if not isinstance(event, StepProgress):
            return True
        now = time.monotonic()
        if now - self._progress_written < PROGRESS_INTERVAL_S:
            return False
        self._progress_written = now
        return True

    def _write_waiting(self) -> None:
        """Writes the waiting lines, as far as the disk takes them."""
        self._is_full = False
        while self._waiting:
            try:
                self._write(self._waiting[0])
            except OSError as error:
                if len(self._waiting) < _MOST_WAITING and self._tolerates(error):
                    return
                del self._waiting[-1]
                raise
            del self._waiting[0]

    def _sync(self) -> None:
        try:
            if self._sync_failed:
                self._dirty_again()
            durable.sync(self._fd)
            if not self._is_named:
                durable.sync_path(self._path.parent)
                self._is_named = True
        except OSError as error:
            self._sync_failed = True
            if not self._tolerates(error):
                raise
        else:
            self._synced, self._sync_failed = self._end, False

    def _dirty_again(self) -> None:
        """Writes the lines since the last sync over themselves, as a failed sync leaves its pages marked as written."""
        # The journal's own descriptor appends, wherever pwrite is told to write.
        descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            if os.path.samestat(os.fstat(descriptor), os.fstat(self._fd)):
                lines = os.pread(self._fd, self._end - self._synced, self._synced)
                os.pwrite(descriptor, lines, self._synced)
        finally:
            os.close(descriptor)

    def _tolerates(self, error: OSError) -> bool:
        if durable.is_full(error):
            self._is_full = True
        elif durable.is_transient(error):
            self._problem = error.strerror or str(error)
        else:
            return False
        return True

    def _write(self, line: bytes) -> None:
        self._remove_torn()
        try:
            written = os.write(self._fd, line)
            if written < len(line):
                # A disk that fills up first gives a short write; the next write raises the error.
                os.write(self._fd, line[written:])
        except OSError:
            with contextlib.suppress(OSError):  # tried again before the next line
                self._remove_torn()
            raise
        self._end += len(line)

    def _remove_torn(self) -> None:
        if os.fstat(self._fd).st_size > self._end:
            os.ftruncate(self._fd, self._end)


class JournalReader:
    """Reads a journal from its start, and again as it grows.

    Attributes:
        damaged: Lines skipped so far because they were no valid events.
        problem: Why the last attempt to read the journal failed, "" if it did not. A mounted directory may be
            unavailable for a while.
        behind: Whether the last call left complete lines unread.
        share: Share of the journal that was read, from 0 to 1.
    """

    def __init__(self, path: Path) -> None:
        self.damaged = 0
        self.problem = ""
        self.behind = False
        self.share = 0.0
        self._path = path
        self._offset = 0
        self._in_long_line = False

    def poll(self, limit: int | None = None) -> list[Envelope]:
        """Reads the events whose lines were completed since the last call; none if there is no journal yet.

        Args:
            limit: Approximate bytes per call, because a journal of weeks takes seconds to decode.
        """
        data = self._read_new(limit)
        # An incomplete last line is read again from its start, as its writer may yet remove it.
        start, end = 0, data.rfind(b"\n") + 1
        if self._in_long_line and end:
            self._in_long_line, start = False, data.find(b"\n") + 1
        if len(data) - end >= _LONGEST_LINE:
            self.damaged += not self._in_long_line
            self._in_long_line = True
            self._offset += len(data)
        else:
            self._offset += end
        envelopes = []
        for line in data[start:end].splitlines():
            envelope = decode_line(line)
            if envelope is None:
                self.damaged += 1
            else:
                envelopes.append(envelope)
        return envelopes

    def _read_new(self, limit: int | None) -> bytes:
        self.behind = False
        try:
            with os.fdopen(regular_file.open_regular(self._path), "rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < self._offset:
                    self._offset, self._in_long_line = 0, False  # the journal was replaced by another file
                file.seek(self._offset)
                data = file.read(limit)
                if limit is not None and len(data) == limit:
                    data += file.readline(_LONGEST_LINE)
                self.behind = self._offset + len(data) < size
                self.share = min(1.0, (self._offset + len(data)) / size) if size else 1.0
        except FileNotFoundError:
            return b""
        except OSError as error:
            self.problem = error.strerror or str(error)
            return b""
        self.problem = ""
        return data


def read_events(path: Path) -> Iterator[Envelope]:
    """Yields all events of a journal, holding a megabyte of it at a time; none if it cannot be read."""
    reader = JournalReader(path)
    while True:
        yield from reader.poll(_CHUNK)
        if not reader.behind:
            return


def read_ends(path: Path, limit: int) -> tuple[list[Envelope], list[Envelope]]:
    """Reads the events in the first and in the last `limit` bytes; both are all events if the journal is shorter.

    Summaries use it, so as not to read the whole journal of a run of weeks.

    Raises:
        OSError: the journal cannot be read (one that does not exist is empty).
    """
    try:
        with os.fdopen(regular_file.open_regular(path), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(limit)
            if size <= limit:
                tail = head
            else:
                file.seek(size - limit)
                tail = file.read()
    except FileNotFoundError:
        return [], []
    head_events = [found for line in head.splitlines() if (found := decode_line(line))]
    if tail is head:
        return head_events, head_events
    return head_events, [found for line in tail.splitlines() if (found := decode_line(line))]


def next_seq(path: Path) -> int:
    """Returns the number of the journal's next event; 0 if there is no journal yet.

    Raises:
        OSError: the journal cannot be read.
    """
    try:
        with os.fdopen(regular_file.open_regular(path), "rb") as file:
            return _next_seq(file.fileno())
    except FileNotFoundError:
        return 0


def _next_seq(fd: int) -> int:
    """Returns the last valid line's number plus one, searching backwards from the end in blocks."""
    end = os.fstat(fd).st_size
    pieces: list[bytes] = []
    "Of the line that begins in an earlier block, last one first; empty where it is too long."
    length = 0
    while end > 0:
        start = max(0, end - _BLOCK)
        first, *lines = os.pread(fd, end - start, start).split(b"\n")
        if lines:
            lines[-1] += b"".join(reversed(pieces))
            pieces, length = [], 0
        length += len(first)
        pieces = [*pieces, first] if length < _LONGEST_LINE else []
        complete = [b"".join(reversed(pieces)), *lines] if start == 0 else lines
        for line in reversed(complete):
            if (envelope := decode_line(line)) is not None:
                return envelope.seq + 1
        end = start
    return 0


def _mend_last_line(fd: int) -> None:
    size = start = os.fstat(fd).st_size
    while start > 0:
        block = os.pread(fd, min(_BLOCK, start), max(0, start - _BLOCK))
        newline = block.rfind(b"\n")
        start -= len(block) - (newline + 1)
        if newline >= 0:
            break
    if start == size:
        return
    if size - start < _LONGEST_LINE and decode_line(os.pread(fd, size - start, start)) is not None:
        os.write(fd, b"\n")
    else:
        os.ftruncate(fd, start)
