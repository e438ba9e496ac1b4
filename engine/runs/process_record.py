"""Which process trains a run, and whether it still does.

A process id alone proves nothing: ids are used again. `process.json` also holds the process's start time, as the
kernel counts it, and the place where the id means something (boot and pid namespace). Somebody who reads the run
directory from elsewhere cannot see the process, and goes by the heartbeat: the record's modification time.
"""

from __future__ import annotations

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
"""A run seen from another machine is taken for dead after this long without a heartbeat (clocks may differ)."""


@dataclass(frozen=True, kw_only=True)
class ProcessRecord:
    """The training process of a run's present attempt."""

    pid: int
    start: str
    "When the process started: clock ticks since boot (Linux), else seconds since the epoch."
    place: str
    "Boot and pid namespace in which `pid` is valid."
    first_seq: int
    "Number of the first event of this attempt; what lies below belongs to earlier ones."
    oom_counter: str = ""
    "File that counts the processes that the kernel ends for want of memory in this one's group; empty for none."
    oom_kills: int = 0
    "What it said when this process started."

    @classmethod
    def of_process(cls, pid: int, first_seq: int) -> ProcessRecord:
        """The record of a process on this machine.

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
    """Replaces the record at once; a reader sees the old one or the new one.

    Raises:
        OSError: the run directory cannot be written.
    """
    # Two processes write the same record at the start of a run.
    replace_text(path, json.dumps(asdict(record)) + "\n")


def read_record(path: Path) -> ProcessRecord | None:
    """The record, or None where there is none or it is damaged."""
    try:
        data = json.loads(regular_file.read_text(path, 1 << 16))
        record = ProcessRecord(**data)
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    numbers = (record.pid, record.first_seq, record.oom_kills)
    valid = all(type(number) is int for number in numbers) and record.pid > 0
    texts = (record.start, record.place, record.oom_counter)
    return record if valid and all(type(text) is str for text in texts) else None


def is_alive(path: Path, record: ProcessRecord) -> bool:
    """Whether the recorded process still runs."""
    if record.place == this_place():
        return process_start(record.pid) == record.start
    try:
        return time.time() - path.stat().st_mtime < STALE_S
    except OSError:
        return False


def memory_ran_out(record: ProcessRecord) -> bool:
    """Whether the kernel has ended a process of the recorded one's group for want of memory since that one started."""
    if not record.oom_counter or record.place != this_place():
        return False
    return (limits.read_oom_kills(Path(record.oom_counter)) or 0) > record.oom_kills


def process_start(pid: int) -> str | None:
    """When a process of this machine started, or None where it has ended (a zombie has)."""
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
    """Names the boot and pid namespace of this process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return socket.gethostname()


class Heartbeat:
    """Touches the record every `HEARTBEAT_S` seconds until closed, from a thread of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops beating."""
        self._closed.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._closed.wait(HEARTBEAT_S):
            try:
                os.utime(self._path)
            except FileNotFoundError:
                return  # the run directory was deleted under the run
