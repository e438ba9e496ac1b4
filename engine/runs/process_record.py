"""Records the training process of a run, and tells whether it is alive.

A process id alone is not enough, because ids are reused. `process.json` also holds the process's start time, as the
kernel counts it, and the boot and pid namespace in which the id is valid. A reader on another machine cannot see the
process, and uses the heartbeat instead, which is the record's modification time.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from engine import regular_file
from engine.hardware import limits
from engine.whole_file import replace_text

HEARTBEAT_S = 10.0
STALE_S = 120.0
"""Seconds without a heartbeat after which another machine takes a run for dead (clocks may differ)."""


@dataclass(frozen=True, kw_only=True)
class ProcessRecord:
    """Training process of a run's current attempt."""

    pid: int
    start: str
    "Start time of the process, in clock ticks since boot (Linux) or seconds since the epoch."
    place: str
    "Boot and pid namespace in which `pid` is valid."
    first_seq: int
    "Number of the first event of this attempt; lower numbers belong to earlier ones."
    oom_counter: str = ""
    "File with the number of OOM kills in this process's cgroup; empty for none."
    oom_kills: int = 0
    "Its value when this process started."

    @classmethod
    def of_process(cls, pid: int, first_seq: int) -> ProcessRecord:
        """Creates the record of a process on this machine.

        Raises:
            ProcessLookupError: it has ended.
        """
        start = process_start(pid)
        if start is None:
            raise ProcessLookupError(f"process {pid} has ended")
        counter = limits.find_oom_counter()
        return cls(
            pid=pid,
            start=start,
            place=this_place(),
            first_seq=first_seq,
            oom_counter=str(counter or ""),
            oom_kills=(limits.read_oom_kills(counter) if counter else None) or 0,
        )


def write_record(path: Path, record: ProcessRecord) -> None:
    """Replaces the record atomically; a reader sees the old one or the new one.

    Raises:
        OSError: the run directory cannot be written.
    """
    # Atomic, because two processes write the same record at the start of a run.
    replace_text(path, json.dumps(asdict(record)) + "\n")


def read_record(path: Path) -> ProcessRecord | None:
    """Reads the record; None if it is missing or damaged."""
    try:
        record = ProcessRecord(**regular_file.read_object(path, 1 << 16))
    except (OSError, ValueError, TypeError):
        return None
    numbers = (record.pid, record.first_seq, record.oom_kills)
    valid = all(type(number) is int for number in numbers) and record.pid > 0
    texts = (record.start, record.place, record.oom_counter)
    return record if valid and all(type(text) is str for text in texts) else None


def is_alive(path: Path, record: ProcessRecord) -> bool:
    """Tells whether the recorded process is still running."""
    if record.place == this_place():
        return process_start(record.pid) == record.start
    try:
        return time.time() - path.stat().st_mtime < STALE_S
    except OSError:
        return False


def memory_ran_out(record: ProcessRecord) -> bool:
    """Tells whether the OOM killer hit the process's cgroup since the process started."""
    if not record.oom_counter or record.place != this_place():
        return False
    return (limits.read_oom_kills(Path(record.oom_counter)) or 0) > record.oom_kills


def process_start(pid: int) -> str | None:
    """Returns the start time of a process of this machine; None if it has ended (a zombie has)."""
    if not sys.platform.startswith("linux"):
        return _portable_start(pid)
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses may hold anything; after it come the state (3rd field) and the start time (22nd).
    fields = text[text.rindex(b")") + 2 :].split()
    return None if fields[0] in (b"Z", b"X") else fields[19].decode()


def _portable_start(pid: int) -> str | None:
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else str(process.create_time())
    except psutil.NoSuchProcess:
        return None


def this_place() -> str:
    """Identifies the boot and pid namespace of this process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return socket.gethostname()


class Heartbeat:
    """Touches the record every `HEARTBEAT_S` seconds until closed, in a background thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops the heartbeat."""
        self._closed.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._closed.wait(HEARTBEAT_S):
            # A network file system may be away for a moment (ESTALE, EIO, ENOENT): monitors would call the run dead.
            with contextlib.suppress(OSError):
                os.utime(self._path)
