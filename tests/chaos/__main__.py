"""Kills, damages and fills, and prints what came of it: a table, and JSON with seed, versions and machine.

python -m tests.chaos             full counts, about an hour (estimated)
python -m tests.chaos --short     each kind a few times, within a minute
"""

from __future__ import annotations

import os

# Before torch: one thread, so that a fork is a whole process.
os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import engine.recipes.fine_tune
from tests.chaos import app, damage, kills, memory, mutations, surroundings
from tests.chaos.fuzzing import fuzz, replay
from tests.chaos.lab import BrokenError, Lab
from tests.chaos.surfaces import SURFACES
from tests.runs import test_power_loss

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "chaos.json"

Counts = dict[str, Any]
"""How often what was done: whole numbers; "phases" holds such counts by phase."""

Scenario = tuple[str, int, int, Callable[[Lab, int], Counts]]
"""Name, full count, short count, what to do so many times."""


def lose_power(lab: Lab, random_ones: int) -> Counts:
    """Every crash point of journal, checkpoints, store, results and a new run; so many disks by chance at each."""
    disks = 0
    for name in test_power_loss.SCENARIOS:
        folder = lab.folder / f"power-{name}"
        folder.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            try:
                disks += test_power_loss.replay(folder, patch, name, random_ones, lab.random.randrange(2**31))
            except AssertionError as error:
                raise BrokenError(f"{name}: {error}") from error
    return {"disks": disks}


def interleave(lab: Lab, count: int) -> Counts:
    """Resume, stop, delete, rename and watch one run at once, in orders that seeds decide (tests/runs)."""
    seed = str(lab.random.randrange(2**31))
    command = [sys.executable, "-m", "tests.runs.interleavings", seed, str(count)]
    done = subprocess.run(command, cwd=RESULTS.parents[2], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BrokenError(done.stderr[-3000:])
    return {"histories": count}


SCENARIOS: tuple[Scenario, ...] = (
    ("training and checkpoints", 120, 5, lambda lab, n: kills.kill_training(lab, n, step="whole")),
    ("streamed steps, saved within", 80, 4, lambda lab, n: kills.kill_training(lab, n, step="streamed")),
    ("building data", 40, 3, kills.kill_data_building),
    ("writing journals", 200, 12, kills.kill_journal_writing),
    ("the monitor in a terminal", 15, 1, app.kill_the_monitor),
    ("the wizard, typed into", 25, 1, app.kill_the_wizard),
    ("the wizard, starting a run", 12, 0, app.kill_the_start),
    ("engine train in the foreground", 2, 0, kills.kill_the_command),
    ("a hostile repository", 24, 1, surroundings.learn_a_hostile_repository),
    ("memory that runs out, at every phase", 3, 0, memory.run_out_of_memory),
    ("a disk that fills up", 20, 0, surroundings.fill_the_disk),
    ("mutated configurations", 10_000, 150, damage.mutate_configurations),
    ("mutated journals", 10_000, 100, damage.mutate_journals),
    ("truncated and flipped files", 4_000, 200, damage.damage_files),
    ("odd values in run directories", 15_000, 60, mutations.mutate_run_directories),
    *((name, full, short, partial(fuzz, surface=name, make=make)) for name, (full, short, make) in SURFACES.items()),
    ("a run used by several at once", 1_000, 0, interleave),
    ("power lost, by the model", 40, 0, lose_power),
)


def main() -> int:
    """Runs the scenarios; 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="a few of each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", metavar="TEXT", default="", help="scenarios whose name holds this")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the counts here")
    parser.add_argument("--replay", metavar="NAME:SEED:INDEX", help="one odd input again; its folder is left")
    parser.add_argument("--on-disk", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--times", type=int, default=1, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.on_disk:
        print(surroundings.run_on(args.on_disk, args.times, args.seed))
        return 0
    if args.replay:
        lab = Lab(Path(tempfile.mkdtemp(prefix="elite-chaos-")), args.seed)
        for name, value in replay(lab, SURFACES[args.replay.rsplit(":", 2)[0]][2], args.replay).items():
            print(f"{name}: {value}")
        return 0
    rows = [run(scenario, args) for scenario in SCENARIOS if args.only in scenario[0]]
    for name, counts, seconds, problem in rows:
        text = ", ".join(f"{count:,} {what}" for what, count in counts.items() if isinstance(count, int))
        print(f"{name:<32} {text:<34} {seconds:7.1f} s  {problem or 'nothing lost'}")
    if args.json:
        write(args.json, args.seed, rows, keep=bool(args.only))
    return int(any(problem for *_, problem in rows))


def run(scenario: Scenario, args: argparse.Namespace) -> tuple[str, Counts, float, str]:
    """One scenario in a folder of its own: its counts, seconds, and what was lost."""
    name, full, short, work = scenario
    count = short if args.short else full
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="elite-chaos-"))
    counts: Counts = {}
    problem = ""
    try:
        if name == "a disk that fills up" and not _can_mount():
            return name, {"skipped": count}, 0.0, ""
        if count:
            counts = work(Lab(folder, args.seed), count)
    except BrokenError as error:
        problem = f"BROKEN: {error}"
    shutil.rmtree(folder, ignore_errors=True)
    print(f"{name}: {problem or counts}", file=sys.stderr, flush=True)
    return name, counts, time.monotonic() - began, problem


def _can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    probe = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


def write(path: Path, seed: int, rows: list[tuple[str, Counts, float, str]], *, keep: bool) -> None:
    """Writes counts, seed, seconds, versions and machine; `keep` leaves the rows of scenarios that were not run."""
    where = {
        "command": "make chaos",
        "seed": seed,
        "elite_tui": engine.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }
    found = {
        name: {"name": name, **counts, "seconds": round(seconds, 1), "lost": problem}
        for name, counts, seconds, problem in rows
    }
    former = json.loads(path.read_text()) if keep and path.exists() else {}
    if {name: former.get(name) for name in where} == where:
        found = {row["name"]: row for row in former["scenarios"]} | found
    ordered = [found[name] for name, *_ in SCENARIOS if name in found]
    path.write_text(json.dumps({**where, "scenarios": ordered}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
