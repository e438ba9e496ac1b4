"""Processor time of the app's own thread until a screen is drawn, on its first visit and again: `make bench-ui`.

The app runs within this process on a terminal of its own (Textual's pilot), with the tests' machine and repository:
from the key to the drawn frame. Planning and reading are another thread's. The median of several apps counts. Exits
with 1 where a screen is over its limit of 0.3 s. `--json FILE` writes the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

LIMIT_S = 0.3
SCREENS = ("hardware", "tiers", "options", "data", "review", "runs", "project")
SIZES = ((80, 24), (120, 36))


async def measure(size: tuple[int, int]) -> dict[str, tuple[float, float]]:
    """Processor seconds of every screen, on the first visit and on the second."""
    from tests.tui.support import FixedEngine, gpu_machine, half_way, history_of, make_app, settled, until

    app = make_app(engine=FixedEngine(gpu_machine(), half_way()), values={"model.name": "qwen2.5-coder-1.5b"})
    app.state.snapshots.extend(history_of(gpu_machine()))
    found: dict[str, list[float]] = {name: [] for name in SCREENS}
    async with app.run_test(size=size) as pilot:
        await settled(pilot)
        for _ in range(2):
            for name in SCREENS:
                start = time.thread_time()
                app.go(name)
                await pilot.pause()
                found[name].append(time.thread_time() - start)
                await settled(pilot)
        # The form of all fields is a screen of its own in all but name.
        app.go("options")
        await settled(pilot)
        found["options, all fields"] = []
        for _ in range(2):
            start = time.thread_time()
            await pilot.press("f4")
            await pilot.pause()
            found["options, all fields"].append(time.thread_time() - start)
            await pilot.press("f4")
            await settled(pilot)
        # Dialogs and the screens of a run.
        app.go("tiers")
        await settled(pilot)
        for key, name in (("f1", "help"), ("f4", "models")):
            found[name] = []
            for _ in range(2):
                start = time.thread_time()
                await pilot.press(key)
                await pilot.pause()
                found[name].append(time.thread_time() - start)
                await until(pilot, lambda: not app.state.models.loading, 600)
                await pilot.press("escape")
                await pilot.pause()
        app.run_desk.open([None])
        await until(pilot, lambda: app.state.run is not None and app.state.run.updated_at is not None)
        for name in ("result", "monitor") * 2:
            app.go("runs")
            await settled(pilot)
            start = time.thread_time()
            app.go(name)
            await pilot.pause()
            found.setdefault(name, []).append(time.thread_time() - start)
            await settled(pilot)
    return {name: (times[0], times[1]) for name, times in found.items()}


def main() -> int:
    """Measures, prints the table, and returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", type=int, default=3, metavar="N", help="apps a size (3)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    from engine.runs.run_index import STATE_VARIABLE

    rows = []
    with tempfile.TemporaryDirectory() as state:
        os.environ[STATE_VARIABLE] = state
        asyncio.run(measure(SIZES[0]))  # imports and caches
        for size in SIZES:
            runs = [asyncio.run(measure(size)) for _ in range(args.times)]
            for name in runs[0]:
                first, again = (statistics.median(run[name][visit] for run in runs) for visit in (0, 1))
                row = {
                    "screen": name,
                    "size": f"{size[0]}x{size[1]}",
                    "first": round(first, 3),
                    "again": round(again, 3),
                }
                rows.append(row)
                print(f"{name:22} {size[0]:>3}x{size[1]}  {first:6.3f} s  again {again:6.3f} s", flush=True)
    if args.json:
        about = {
            "command": "python benchmarks/screens.py --json benchmarks/results/screens.json",
            "python": platform.python_version(),
            "textual": version("textual"),
            "cores": os.cpu_count(),
            "load": round(os.getloadavg()[0], 1),
            "apps": args.times,
            "limit": LIMIT_S,
        }
        args.json.write_text(json.dumps({**about, "screens": rows}, indent=1) + "\n")
    return 1 if any(row["first"] > LIMIT_S for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
