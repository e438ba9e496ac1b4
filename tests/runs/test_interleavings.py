"""Resume, stop, delete, rename and watch at once: each event once, none lost, one writer, no run under its old name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def play(first, count):
    done = subprocess.run(
        [sys.executable, "-m", "tests.runs.interleavings", str(first), str(count)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads(done.stdout)


def test_histories_are_right():
    assert play(0, 20) == {"interleavings": 20, "casts": 10}


@pytest.mark.slow
def test_many_histories_are_right():
    assert play(20, 1000)["interleavings"] == 1000
