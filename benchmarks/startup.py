"""Start-up times of the two commands, as a person at a terminal meets them: `make bench-ui`.

    engine --help     from the start of the process to its end
    elite-tui         from the start of the process to the first frame: text on a 120 × 40 terminal

Each is run in a fresh process; the median counts, after one run that warms the disk's cache. Exits with 1 where
one is over its limit, 0.3 s and 0.5 s. `--json FILE` writes the figures.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import platform
import pty
import re
import select
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
HELP_LIMIT_S = 0.3
FRAME_LIMIT_S = 0.5
FRAME_CHARACTERS = 100
"""A frame is there when this many characters that are not blank have been drawn."""
FRAME_TIMEOUT_S = 20.0

_ESCAPES = re.compile(
    rb"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[@-Z\\^_=>]|P[^\x1b]*\x1b\\|[()][A-Z0-9])"
)


def time_help() -> float:
    """Seconds that `engine --help` takes."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "engine", "--help"], stdout=subprocess.DEVNULL, cwd=ROOT, check=True)
    return time.perf_counter() - start


def time_first_frame() -> float:
    """Seconds from the start of `elite-tui` to its first frame.

    Raises:
        RuntimeError: there was none; the message holds what was drawn instead.
    """
    with tempfile.TemporaryDirectory(prefix="elite-bench-") as state:
        environment = os.environ | {"ELITE_TUI_STATE_DIR": state, "TERM": "xterm-256color"}
        start = time.perf_counter()
        pid, terminal = pty.fork()
        if pid == 0:
            os.chdir(ROOT)
            os.execve(sys.executable, [sys.executable, "-m", "elite_tui"], environment)
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        try:
            return _wait_for_frame(terminal) - start
        finally:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            os.close(terminal)


def _wait_for_frame(terminal: int) -> float:
    drawn = b""
    deadline = time.perf_counter() + FRAME_TIMEOUT_S
    while time.perf_counter() < deadline:
        if not select.select([terminal], [], [], 0.05)[0]:
            continue
        try:
            drawn += os.read(terminal, 65536)
        except OSError:
            break  # the program has ended
        text = b"".join(_ESCAPES.sub(b"", drawn).split())
        if b"\x1b[?1049h" in drawn and len(text) >= FRAME_CHARACTERS:
            return time.perf_counter()
    raise RuntimeError(_ESCAPES.sub(b"", drawn).decode(errors="replace").strip() or "nothing was drawn")


def main() -> int:
    """Measures, prints the table, and returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=10, help="fresh processes a command (default 10)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures here")
    args = parser.parse_args()
    runs = args.runs
    head = {
        "python": platform.python_version(),
        "textual": version("textual"),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "runs": runs,
    }
    print(", ".join(f"{name} {value}" for name, value in head.items()))
    measured = [("engine --help", time_help, HELP_LIMIT_S), ("elite-tui, first frame", time_first_frame, FRAME_LIMIT_S)]
    found = []
    print(f"{'':24} {'median':>8} {'fastest':>8} {'slowest':>8} {'limit':>8}")
    failed = False
    for name, measure, limit in measured:
        measure()
        seconds = [measure() for _ in range(runs)]
        median = statistics.median(seconds)
        spread = {"median": median, "fastest": min(seconds), "slowest": max(seconds), "limit": limit}
        found.append({"what": name, **{key: round(value, 3) for key, value in spread.items()}})
        failed |= median > limit
        verdict = "too slow" if median > limit else "ok"
        figures = "".join(f" {value:6.3f} s" for value in (median, min(seconds), max(seconds), limit))
        print(f"{name:24}{figures}  {verdict}")
    if args.json:
        args.json.write_text(json.dumps({**head, "seconds": found}, indent=1) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
