"""Measures this machine in a child process, which confines failures of a GPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil

from engine.errors import one_line
from engine.errors.planning import PROFILE_FAILED
from engine.hardware.environment import limit_omp_spin
from engine.hardware.machine import Machine
from engine.hardware.measured import Measured
from engine.quantities import format_seconds

CHILD = "engine.benchmarking.profile_child"
LOOK_SECONDS = 0.5
"Seconds of reading the CPU's load before it is measured."
TIME_LIMIT = 240.0
"Seconds after which the child is killed."


@dataclass(frozen=True, kw_only=True)
class ProfileProgress:
    """The start of one measurement."""

    what: str
    done: int
    total: int


def profile_machine(
    machine: Machine,
    disk_path: Path,
    progress: Callable[[ProfileProgress], None] = lambda _: None,
    *,
    time_limit: float = TIME_LIMIT,
) -> Measured:
    """Runs every measurement once, in about a minute.

    Args:
        machine: From `take_inventory`; tells whether there is a GPU to measure, and whether other processes use it.
        disk_path: An existing folder on the disk that runs are written to.
        progress: Called at the start of each measurement.
        time_limit: Seconds for all measurements.

    Raises:
        EliteError: PROFILE_FAILED, if the child cannot even measure the CPU.
    """
    arguments = ["--disk", str(disk_path), "--cores", str(machine.cpu_cores)]
    for gpu in machine.gpus[:1]:
        arguments += ["--gpu", "--free", str(gpu.memory_free or 0), *(["--busy"] if gpu.processes else [])]
    found: dict[str, object] = {"others_busy": psutil.cpu_percent(interval=LOOK_SECONDS) / 100}
    with _child(arguments, time_limit) as (lines, ended):
        for line in lines:
            message = json.loads(line)
            if "progress" in message:
                progress(ProfileProgress(**message["progress"]))
            else:
                found |= message
        status, output = ended()
    problem = _problem(status, output, time_limit)
    if "torch" not in found or (problem and not machine.gpus):
        raise PROFILE_FAILED(problem=problem or "the child process said nothing")
    if problem:
        found["gpu_problem"] = problem
    return msgspec.convert({"time": time.time(), **found}, type=Measured)


def _problem(status: int, output: str, time_limit: float) -> str | None:
    if status == 0:
        return None
    if status == -signal.SIGKILL:
        return f"it was ended after {format_seconds(time_limit)}, or ran out of memory"
    last = [line for line in output.splitlines() if line.strip()]
    return one_line(last[-1]) if last else f"the child process ended with status {status}"


@contextmanager
def _child(arguments: list[str], time_limit: float) -> Iterator[tuple[Iterator[str], Callable[[], tuple[int, str]]]]:
    """Yields the child's output lines, and a function that waits for its exit status and standard error."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    limit_omp_spin(environment)  # as in training, because spinning threads measure each other on a busy machine
    process = subprocess.Popen(
        [sys.executable, "-m", CHILD, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=environment,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    words: list[str] = []
    listener = threading.Thread(target=lambda: words.extend(process.stderr or ()), daemon=True)
    listener.start()
    alarm = threading.Timer(time_limit, process.kill)
    alarm.daemon = True
    alarm.start()

    def ended() -> tuple[int, str]:
        status = process.wait()
        listener.join(timeout=5)
        return status, "".join(words)

    try:
        yield iter(process.stdout.readline, ""), ended
    finally:
        alarm.cancel()
        process.kill()
        process.wait()
        listener.join(timeout=5)
        process.stdout.close()
        process.stderr.close()
