"""A completed run of which one file was zeroed, cut off, replaced or made unreadable: each file, by each command."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from tests.chaos.fuzzing import Bench
from tests.chaos.odd import DAMAGES, damage
from tests.chaos.surfaces.run_directories import commands, make_old


def make(bench: Bench, rng: random.Random, folder: Path) -> list[str]:
    """One damage and one command."""
    run = folder / "out" / "runs" / bench.run.name
    shutil.copytree(bench.run, run)
    names = sorted(str(path.relative_to(run)) for path in run.rglob("*") if not path.name.startswith("."))
    damage(run / rng.choice(names), rng.choice(DAMAGES))
    make_old(run)
    return rng.choice(commands(run, folder, rng))
