"""What the monitor costs a terminal: bytes a second on the wire, redraws, and processor time: `make bench-ui`.

Each case runs `elite-tui monitor` in a pseudo-terminal of its own, lets it settle, and then measures:

    at rest       a finished run of 2,000 steps
    live          a run that completes a step a second, reports progress five times a second and logs a line now
                  and then, as the training process would: through a JournalWriter, with a control socket
    slow link     the same, read at 2 KB/s: what the monitor writes must not fall behind what it shows

A redraw is one synchronised update (mode 2026), which the terminal here says it supports. Exits with 1 where a case
is over a limit. Prints a table; `--json FILE` writes the figures.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import math
import os
import platform
import pty
import random
import select
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import psutil

from engine import config as run_config
from engine.protocol.events import (
    CheckpointSaved,
    EvalCompleted,
    LogLine,
    PhaseChanged,
    RunFinished,
    RunStarted,
    StepCompleted,
    StepProgress,
)
from engine.runs.control import ControlServer
from engine.runs.journal import JournalWriter
from engine.runs.process_record import ProcessRecord, write_record
from engine.runs.run_directory import RunDirectory

ROOT = Path(__file__).parents[1]
SIZES = ((80, 24), (120, 36), (200, 60))
REST_BYTES, REST_SHARE, MOST_REDRAWS = 4096.0, 0.03, 4.0
"""Limits: bytes a second and share of a core at rest, redraws a second always."""
STEPS = 2000
SLOW_BYTES = 2048
_SYNC_QUERY, _SYNC_REPLY, _SYNC_START = b"\x1b[?2026$p", b"\x1b[?2026;2$y", b"\x1b[?2026h"


@dataclass(frozen=True)
class Cost:
    """One measured case, per second."""

    case: str
    size: str
    bytes: float
    redraws: float
    share: float
    "Of one core."
    behind: float
    "Seconds until what was written when the measuring ended had been read."


class Writer:
    """Writes a run's journal as its training process would, a step a second."""

    def __init__(self, folder: Path) -> None:
        mapping = {"data": {"repositories": [str(folder)]}, "output": {"directory": str(folder), "model_name": "bench"}}
        self.run = RunDirectory.create(run_config.from_mapping(mapping))
        self.journal = JournalWriter(self.run.journal_path, self.run.id)
        self._step = 0
        self._random = random.Random(0)

    def begin(self, steps: int) -> None:
        self.journal.append(
            RunStarted(model="demo", context=131_072, total_steps=2 * STEPS, device="cpu", planned_host_bytes=3 << 30)
        )
        self.journal.append(EvalCompleted(step=0, loss=2.2, perplexity=math.exp(2.2), tokens=65_536))
        self.journal.append(PhaseChanged(phase="training"))
        for _ in range(steps):
            self.step()

    def step(self) -> None:
        self._step += 1
        loss = 1.2 + math.exp(-self._step / 300) + self._random.gauss(0, 0.08)
        if self._step % 25 == 0:
            self.journal.append(LogLine(level="info", text=f"a line about step {self._step} of this run"))
        if self._step % 200 == 0:
            self.journal.append(CheckpointSaved(step=self._step, path=f"checkpoints/step-{self._step:06}", bytes=1))
        self.journal.append(
            StepCompleted(
                step=self._step,
                total_steps=2 * STEPS,
                epoch=self._step / STEPS,
                loss=loss,
                lr=2e-4 * (1 - self._step / (2 * STEPS)),
                grad_norm=1 + self._random.gauss(0, 0.2),
                tokens=131_072,
                tokens_per_second=14_000 + self._random.gauss(0, 150),
                seconds=1.0,
                host_used=(2 << 30) + self._random.randrange(1 << 24),
            )
        )

    def finish(self) -> None:
        self.journal.append(RunFinished(status="completed", steps=self._step, seconds=float(self._step)))

    @contextlib.contextmanager
    def living(self) -> Iterator[None]:
        """The run trains: a process record, a control socket, and events until this ends."""
        write_record(self.run.process_path, ProcessRecord.of_process(os.getpid(), 0))
        server = ControlServer(self.run.socket_path, lambda _: None)
        ended = threading.Event()

        def train() -> None:
            tile = 0
            while not ended.wait(0.2):
                tile += 1
                self.journal.append(
                    StepProgress(step=self._step + 1, stage="forward", done=tile % 5, total=5, layer=tile % 28, tile=0)
                )
                if tile % 5 == 0:
                    self.step()

        thread = threading.Thread(target=train)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            server.close()


class Screen:
    """A pseudo-terminal that reads what the monitor writes, as fast as it can or so many bytes a second."""

    def __init__(self, run: RunDirectory, size: tuple[int, int], pace: int | None) -> None:
        self._pace = pace
        self.count = self.redraws = 0
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "elite_tui", "monitor", str(run.path)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=ROOT,
            env={**os.environ, "TERM": "xterm-256color", "COLORTERM": "", "TEXTUAL_ANIMATIONS": "none"},
            start_new_session=True,
        )
        os.close(slave)
        self.slow = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        rest = b""
        while not self._ended.is_set():
            if not select.select([self._master], [], [], 0.05)[0]:
                continue
            slow = self.slow and self._pace is not None
            try:
                data = os.read(self._master, 256 if slow else 65_536)
            except OSError:
                return
            if slow and self._pace is not None:
                time.sleep(len(data) / self._pace)
            if _SYNC_QUERY in rest + data:
                os.write(self._master, _SYNC_REPLY)
            # A sequence may be cut between two reads; one that was counted must not be counted again.
            whole = rest + data
            self.redraws += whole.count(_SYNC_START)
            self.count += len(data)
            rest = b"" if whole.endswith(_SYNC_START) else whole[-(len(_SYNC_START) - 1) :]

    def idle_for(self, seconds: float) -> bool:
        """Whether nothing came for a while."""
        before = self.count
        time.sleep(seconds)
        return self.count == before

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._ended.set()
        self._thread.join()
        os.close(self._master)


def measure(case: str, size: tuple[int, int], seconds: float) -> Cost:
    """Runs one case."""
    with tempfile.TemporaryDirectory(prefix="elite-bench-") as folder:
        os.environ["ELITE_TUI_STATE_DIR"] = f"{folder}/state"
        writer = Writer(Path(folder) / "out")
        writer.begin(STEPS)
        live = case != "at rest"
        if not live:
            writer.finish()
        with writer.living() if live else contextlib.nullcontext():
            screen = Screen(writer.run, size, SLOW_BYTES if case == "slow link" else None)
            try:
                time.sleep(5.0)  # start-up, first frames
                screen.slow = True
                process = psutil.Process(screen.process.pid)
                before, count, redraws = process.cpu_times(), screen.count, screen.redraws
                start = time.monotonic()
                time.sleep(seconds)
                after, elapsed = process.cpu_times(), time.monotonic() - start
                count, redraws = screen.count - count, screen.redraws - redraws
                process.suspend()
                start = time.monotonic()
                while not screen.idle_for(0.3):
                    pass
                behind = max(0.0, time.monotonic() - start - 0.3)
            finally:
                screen.close()
        used = after.user + after.system - before.user - before.system
        return Cost(case, f"{size[0]}x{size[1]}", count / elapsed, redraws / elapsed, used / elapsed, behind)


def main() -> int:
    """Measures, prints the table, and returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=12.0, help="measured time a case (default 12)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures here")
    args = parser.parse_args()
    head = {
        "python": platform.python_version(),
        "textual": version("textual"),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "seconds": args.seconds,
    }
    print(", ".join(f"{name} {value}" for name, value in head.items()))
    cases = [(case, size) for case in ("at rest", "live") for size in SIZES] + [("slow link", SIZES[1])]
    costs = []
    print(f"{'':12}{'size':>8}{'bytes/s':>10}{'redraws/s':>11}{'of a core':>11}{'behind':>9}")
    for case, size in cases:
        cost = measure(case, size, args.seconds)
        costs.append(cost)
        over = _over(cost)
        print(
            f"{cost.case:12}{cost.size:>8}{cost.bytes:>10,.0f}{cost.redraws:>11.2f}{cost.share:>11.2%}"
            f"{cost.behind:>8.1f}s  {over or 'ok'}",
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps({**head, "costs": [asdict(cost) for cost in costs]}, indent=1) + "\n")
    return int(any(_over(cost) for cost in costs))


def _over(cost: Cost) -> str:
    found = []
    if cost.redraws > MOST_REDRAWS * 1.05:
        found.append("too many redraws")
    if cost.case == "at rest" and cost.bytes > REST_BYTES:
        found.append("too many bytes")
    if cost.case == "at rest" and cost.share > REST_SHARE:
        found.append("too much processor time")
    return ", ".join(found)


if __name__ == "__main__":
    sys.exit(main())
