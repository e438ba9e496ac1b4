"""Start-up times of the two commands, as a person at a terminal meets them: `make bench-ui`.

    engine --help     from the start of the process to its end
    elite-tui         from the start of the process to the first frame: text on a 120 × 40 terminal

Each is run in a fresh process; the median counts, after one run that warms the disk's cache. Exits with 1 where
one is over its limit, 0.3 s and 0.5 s. `--json FILE` writes the figures.

`--cpu` counts CPU seconds instead, which other work on the machine changes less: of short commands, of what a training
process, `engine generate` and `engine evaluate` import, and of `engine train` until it says and does the first things.
They join the figures that FILE has.

`--train SHAPE` times `engine train` by the clock until the same moments, with a model of that shape of the catalogue
whose random 16-bit shards it writes first. On a GPU it trains in 4 bits and over windows of 8,192 tokens.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import platform
import pty
import re
import resource
import select
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
HELP_LIMIT_S = 0.3
FRAME_LIMIT_S = 0.5
FRAME_CHARACTERS = 100
"""A frame is there when this many characters that are not blank have been drawn."""
FRAME_TIMEOUT_S = 20.0

_ESCAPES = re.compile(
    rb"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[@-Z\\^_=>]|P[^\x1b]*\x1b\\|[()][A-Z0-9])"
)


AT_REST = "from engine.launch.recipe_import import collector_at_rest as rest\nwith rest(): import "
CPU_CASES = {
    "engine --help": ["-m", "engine", "--help"],
    "engine runs": ["-m", "engine", "runs", "--json"],
    "elite-tui --version": ["-m", "elite_tui", "--version"],
    "engine plan --model demo": ["-m", "engine", "plan", "--model", "demo", "--json"],
    "engine train --dry-run": [
        "-m",
        "engine",
        "train",
        "--model",
        "demo",
        "--repo",
        "engine/plan",
        "--dry-run",
        "--json",
    ],
    "imports of a training process": ["-c", f"{AT_REST}engine.recipes.fine_tune"],
    "imports of engine generate": ["-c", f"{AT_REST}engine.generation.writer"],
    "imports of engine evaluate": ["-c", f"{AT_REST}engine.evaluation.evaluate_run"],
}


def count_cpu(arguments: list[str]) -> float:
    """CPU seconds of a fresh Python process."""
    with tempfile.TemporaryDirectory(prefix="elite-bench-") as state:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        environment = os.environ | {"ELITE_TUI_STATE_DIR": state}
        quiet = subprocess.DEVNULL
        subprocess.run([sys.executable, *arguments], stdout=quiet, stderr=quiet, cwd=ROOT, env=environment, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


START = "-m engine train --repo engine/plan --max-steps 1 --json"
START_SETTINGS = ("training.context=512", "training.tokens_per_update=512", "training.evaluate_tokens=512")
GPU_SETTINGS = ("training.context=8192", "training.tokens_per_update=8192", "model.precision=nf4")
MOMENTS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "first event": bool,
    "libraries loaded": lambda event: event.get("detail", "").startswith("measuring the files"),
    "plan made": lambda event: event["kind"] == "RunStarted",
    "files read": lambda event: event.get("phase") == "model",
    "model loaded": lambda event: event.get("phase") == "baseline",
    "first update": lambda event: event["kind"] == "StepCompleted",
}
"""What is waited for, by the first event that shows it, in this order."""


def cpu_seconds(train: subprocess.Popen[bytes]) -> float:
    """CPU seconds that a process and its children have taken so far."""
    process = psutil.Process(train.pid)
    times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    return sum(time.user + time.system for time in times)


def count_start(
    model: str, spent: Callable[[subprocess.Popen[bytes]], float], given: tuple[str, ...] = START_SETTINGS
) -> dict[str, float]:
    """What `engine train` and its training process have spent at each of the moments."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="elite-bench-") as folder:
        environment = os.environ | {"ELITE_TUI_STATE_DIR": folder}
        settings = [word for text in given for word in ("--set", text)]
        command = [sys.executable, *START.split(), "--model", model, "--output", f"{folder}/out", *settings]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT, env=environment
        ) as train:
            assert train.stdout is not None
            for line in train.stdout:
                event, now = json.loads(line), spent(train)
                for name in [name for name, shows in MOMENTS.items() if name not in found]:
                    if not MOMENTS[name](event):
                        break
                    found[name] = now
                if len(found) == len(MOMENTS):
                    break
            process = psutil.Process(train.pid)
            for one in (*process.children(recursive=True), process):
                one.kill()
    return found


def time_training(shape: str, runs: int, file: Path | None) -> None:
    """Prints the seconds of a first start, which quantises the weights, and of later ones, which read the copy."""
    import torch

    from benchmarks.packed_shards import write_shards
    from engine.benchmarking.machine import describe_machine
    from engine.models.catalogue import find_model

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings = GPU_SETTINGS if device.type == "cuda" else START_SETTINGS
    with tempfile.TemporaryDirectory(prefix="elite-bench-") as scratch:
        os.environ["XDG_CACHE_HOME"] = f"{scratch}/cache"  # where the 4-bit copy goes
        write_shards(Path(scratch) / "model", find_model(shape), device)
        starts = []
        for _ in range(runs + 1):
            began = time.perf_counter()
            starts.append(count_start(f"{scratch}/model", lambda _: time.perf_counter() - began, settings))
            print(", ".join(f"{name} {seconds:.2f} s" for name, seconds in starts[-1].items()), flush=True)
    rows = [
        {"what": name, "first": round(starts[0][name], 2), "later": [round(start[name], 2) for start in starts[1:]]}
        for name in starts[0]
    ]
    if file is not None:
        kept = json.loads(file.read_text()) if file.exists() else {}
        found = {"model": shape, "machine": describe_machine(device), "rows": rows}
        file.write_text(json.dumps({**kept, "train": found}, indent=1) + "\n")


def count_all(runs: int, file: Path | None) -> None:
    """Prints the CPU seconds of each case, and adds them to the figures of a file as they come."""
    kept = json.loads(file.read_text()) if file is not None and file.exists() else {}
    libraries = {name: version(name) for name in ("torch", "transformers", "peft", "bitsandbytes")}
    load = round(os.getloadavg()[0], 1)
    rows: list[dict[str, object]] = []
    counted = {"runs": runs, "load": load, "cores": os.cpu_count(), **libraries, "rows": rows}
    print(f"{'CPU seconds':32} {'median':>8} {'least':>8} {'most':>8}")
    for name, arguments in CPU_CASES.items():
        rows.append(_spread(name, [count_cpu(arguments) for _ in range(runs)]))
        if file is not None:
            file.write_text(json.dumps({**kept, "cpu": counted}, indent=1) + "\n")
    starts = [count_start("demo", cpu_seconds) for _ in range(runs)]
    rows += [_spread(f"engine train, {name}", [start[name] for start in starts]) for name in MOMENTS]
    if file is not None:
        file.write_text(json.dumps({**kept, "cpu": counted}, indent=1) + "\n")


def _spread(name: str, seconds: list[float]) -> dict[str, object]:
    row = {"median": statistics.median(seconds), "least": min(seconds), "most": max(seconds)}
    print(f"{name:32}" + "".join(f" {value:6.2f} s" for value in row.values()), flush=True)
    return {"what": name, **{key: round(value, 2) for key, value in row.items()}}


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
    parser.add_argument("--cpu", action="store_true", help="count CPU seconds, also of imports")
    parser.add_argument(
        "--train", metavar="SHAPE", help="time `engine train` with random weights of this model's shape"
    )
    args = parser.parse_args()
    runs = args.runs
    if args.train:
        time_training(args.train, runs, args.json)
        return 0
    if args.cpu:
        count_all(runs, args.json)
        return 0
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
        kept = json.loads(args.json.read_text()) if args.json.exists() else {}
        args.json.write_text(json.dumps({**kept, **head, "seconds": found}, indent=1) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
