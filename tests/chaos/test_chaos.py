"""A few of each kind of what `make chaos` does hundreds of times, in a process that forks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_nothing_is_lost(tmp_path):
    counts = tmp_path / "counts.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", "--short", "--seed", "5", "--json", str(counts)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},  # as `make chaos` runs it
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    scenarios = json.loads(counts.read_text())["scenarios"]
    assert sum(row.get("kills", 0) for row in scenarios) >= 25
    assert not [row for row in scenarios if row["lost"]]
