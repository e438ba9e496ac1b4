"""Keys to the monitor of a journal of a million events, while it is read and after.

    python -m pip install --target build/pyte pyte
    PYTHONPATH=build/pyte python benchmarks/long_journal.py [--events N] [--mixed] [--json FILE]

Runs `elite-tui monitor` in a pseudo-terminal, draws what it writes on an emulated screen, presses keys in turn, and
waits for what each of them changes there. Prints wall time, CPU time of the process with its threads, and that of its
main thread, from the key to the bytes that held the answer; memory; and when all of the journal was read.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import platform
import pty
import random
import select
import struct
import sys
import tempfile
import termios
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyte

from engine.protocol.events import (
    CheckpointSaved,
    EvalCompleted,
    Event,
    LogLine,
    PhaseChanged,
    RunFinished,
    RunStarted,
    StepCompleted,
    WarningRaised,
)
from engine.protocol.wire import Envelope, encode_event
from engine.runs.journal import seal_line

WIDTH, HEIGHT = 120, 40
Seen = Callable[[str], bool]


def write_journal(folder: Path, events: int, *, mixed: bool) -> None:
    """Writes a completed run of steps; with logs, evaluations, checkpoints and warnings where it is mixed."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("model: {name: demo}\n")
    dice = random.Random(1)
    now, seq, step = 1.79e9, 0, 0
    with (folder / "events.jsonl").open("wb") as file:

        def put(event: Event) -> None:
            nonlocal seq
            line = encode_event(Envelope(run=folder.name, seq=seq, time=now, event=event))
            file.write(seal_line(line.encode()) + b"\n")
            seq += 1

        put(RunStarted(model="demo", context=4096, total_steps=events, device="cuda", planned_gpu_bytes=8 << 30))
        put(PhaseChanged(phase="training"))
        put(EvalCompleted(step=0, loss=3.0, perplexity=20.0, tokens=1000))
        while seq < events:
            step, now = step + 1, now + 0.5
            if mixed:
                put(LogLine(level="info", text=f"forward {step}: [/red] what a library says"))
                put(LogLine(level="info", text=f"backward {step}"))
                if step % 50 == 0:
                    put(EvalCompleted(step=step, loss=2 + dice.random() / 9, perplexity=8.0, tokens=1000))
                if step % 100 == 0:
                    put(CheckpointSaved(step=step, path=f"checkpoints/step-{step:06}", bytes=1 << 20))
                if step % 77 == 0:
                    put(WarningRaised(code="slow", text="slow", hint="cool it"))
            put(
                StepCompleted(
                    step=step, total_steps=events, epoch=step / events, lr=1e-4,
                    loss=1 + 2 / (1 + step / 1e5) + dice.random() / 3,
                    grad_norm=dice.random(), tokens=4096, tokens_per_second=8000 + dice.random(), seconds=0.5,
                    gpu_allocated=5 << 30, gpu_reserved=6 << 30, gpu_peak=(6 << 30) + step, host_used=4 << 30,
                )
            )  # fmt: skip
        put(RunFinished(status="completed", steps=step, seconds=now - 1.79e9))


def titled(text: str) -> Seen:
    return lambda screen: any(line.strip().startswith(text) for line in screen.split("\n"))


GRID = ("Gradient norm ", "Learning rate", "Speed", "GiB of memory")
KEYS: tuple[tuple[bytes, Seen], ...] = (
    (b"3", titled("Gradient norm")),
    (b"2", titled("Learning rate")),
    (b"4", titled("Speed")),
    (b"5", titled("GPU")),
    (b"6", titled("RAM")),
    (b"1", titled("Loss")),
    *((b"]", lambda screen, word=word: word in screen) for word in ("~0.6", "~0.9", "~0.97", "~0.99", "raw")),
    (b"y", lambda screen: "y log" in screen),
    (b"y", lambda screen: "y linear" in screen),
    *((b"x", lambda screen, word=word: word in screen) for word in ("x tokens", "x time", "x step")),
    (b"+", lambda screen: "0 whole" in screen),
    (b"0", lambda screen: "0 whole" not in screen),
    (b"g", lambda screen: all(word in screen for word in GRID)),
    (b"g", lambda screen: not all(word in screen for word in GRID)),
    *((b"v", lambda screen, word=word: word in screen) for word in ("info and", "warning and", "error and")),
    (b"v", lambda screen: "and above" not in screen),
)


class Monitor:
    """The app in a pseudo-terminal with an emulated screen."""

    def __init__(self, run: Path) -> None:
        self.began = time.monotonic()
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            os.environ.update(TERM="xterm-256color", COLORTERM="truecolor", TEXTUAL_ANIMATIONS="none")
            os.execv(sys.executable, [sys.executable, "-m", "elite_tui", "monitor", str(run)])
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, WIDTH, 0, 0))
        self._screen = pyte.Screen(WIDTH, HEIGHT)
        self._stream = pyte.ByteStream(self._screen)

    @property
    def text(self) -> str:
        return "\n".join(self._screen.display)

    def clocks(self) -> tuple[float, float, float]:
        """Returns wall time, CPU time of all threads, and of the main one."""
        tasks = Path(f"/proc/{self.pid}/task")
        used = {task.name: int((task / "schedstat").read_text().split()[0]) / 1e9 for task in tasks.iterdir()}
        return time.monotonic(), sum(used.values()), used[str(self.pid)]

    def read(self, seconds: float, until: Seen | None = None) -> tuple[float, float, float] | None:
        """Reads what it writes; returns the clocks at the bytes that brought `until`."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if select.select([self._terminal], [], [], left)[0]:
                data, now = os.read(self._terminal, 1 << 16), self.clocks()
                # The emulator takes these queries for text.
                for query in (b"\x1b[?2026$p", b"\x1b[>1u", b"\x1b[<u"):
                    data = data.replace(query, b"")
                self._stream.feed(data)
                if until is not None and until(self.text):
                    return now
        return None

    def press(self, key: bytes, until: Seen) -> tuple[float, ...] | None:
        before = self.clocks()
        os.write(self._terminal, key)
        after = self.read(20, until)
        return None if after is None else tuple(b - a for a, b in zip(before, after, strict=True))

    def memory(self) -> str:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return ", ".join(" ".join(line.split()) for line in lines if line.startswith(("VmRSS", "VmHWM")))


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--events", type=int, default=1_000_000)
    arguments.add_argument("--mixed", action="store_true")
    arguments.add_argument("--json", type=Path, metavar="FILE", help="keep the figures there too")
    options = arguments.parse_args()
    kept: dict[str, Any] = {
        "command": "python benchmarks/long_journal.py" + " --mixed" * options.mixed,
        "events": options.events,
        "python": platform.python_version(),
        "textual": version("textual"),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
    }
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ELITE_TUI_STATE_DIR"] = folder
        run = Path(folder) / "runs" / "20260101-000000-long"
        write_journal(run, options.events, mixed=options.mixed)
        monitor = Monitor(run)
        for name, word in (("first frame", "Loss"), ("latest step", "completed")):
            clocks = monitor.read(60, lambda screen, word=word: word in screen)
            assert clocks is not None, monitor.text
            print(f"{name}: {clocks[0] - monitor.began:.2f} s, {clocks[1]:.2f} s of CPU time", flush=True)
            kept[name] = {"seconds": round(clocks[0] - monitor.began, 2), "cpu_seconds": round(clocks[1], 2)}
        times: dict[bool, list[tuple[bytes, tuple[float, ...]]]] = {True: [], False: []}
        missed, place = 0, 0
        while len(times[False]) < 2 * len(KEYS) and missed < 5:
            key, seen = KEYS[place % len(KEYS)]
            place, reads = place + 1, "reading the journal" in monitor.text
            taken = monitor.press(key, seen)
            missed += taken is None
            if taken is not None:
                times[reads].append((key, taken))
            monitor.read(0.15)
            if reads and "reading the journal" not in monitor.text:
                now = monitor.clocks()
                kept["all read"] = {
                    "seconds": round(now[0] - monitor.began, 1),
                    "cpu_seconds": round(now[1], 1),
                    "memory": monitor.memory(),
                }
                print(
                    f"all read: {now[0] - monitor.began:.1f} s, {now[1]:.1f} s of CPU time, {monitor.memory()}",
                    flush=True,
                )
        for reads, found in times.items():
            for index, clock in enumerate(("wall", "CPU", "CPU of the main thread")):
                ranked = sorted((taken[index], key) for key, taken in found)
                if ranked:
                    (middle, _), (worst, key) = ranked[len(ranked) // 2], ranked[-1]
                    when = "while it is read" if reads else "afterwards"
                    print(f"{len(ranked)} keys {when}, {clock}: median {middle:.3f} s, worst {worst:.3f} s ({key!r})")
                    row = {"keys": len(ranked), "median": round(middle, 3), "worst": round(worst, 3)}
                    kept[f"keys {when}, {clock}"] = row
        print(f"{missed} keys without an answer")
        kept["keys without an answer"] = missed
        os.kill(monitor.pid, 9)
    if options.json:
        options.json.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return missed


if __name__ == "__main__":
    raise SystemExit(main())
