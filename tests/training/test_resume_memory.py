"""A resumed run needs no more memory than the run itself did, with an adapter that is large beside its model."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import resource, sys
from pathlib import Path
from support.session import RecordingSession
from engine.config import from_mapping
from engine.protocol.commands import Stop
from engine.runs.run_directory import RunDirectory
from engine.recipes.fine_tune import train

folder, resuming = Path(sys.argv[1]), sys.argv[2] == "resumed"
config = from_mapping({
    "model": {"name": "demo", "device": "cpu"},
    "data": {"repositories": [str(folder / "repository")]},
    "lora": {"rank": 512},
    "training": {"context": 64, "tokens_per_update": 128, "max_steps": 8, "evaluate_tokens": 64},
    "checkpoint": {"every_minutes": 1e-9},
    "output": {"directory": str(folder / "out")},
})
if resuming:
    (path,) = (folder / "out" / "runs").iterdir()
    session = RecordingSession(config=config, run=RunDirectory(path), resuming=True, script={})
else:
    session = RecordingSession(config=config, run=RunDirectory.create(config), script={4: [Stop(id="1")]})
train(session)
assert session.events[-1].status == ("completed" if resuming else "stopped")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak(folder, how):
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), how],
        env={**os.environ, "PYTHONPATH": f"{root}:{root}/tests", "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout.split()[-1]) * 1024


@pytest.mark.slow
def test_resuming_peaks_no_higher_than_training(tmp_path):
    (tmp_path / "repository").mkdir()
    for name in ("queues.py", "locks.py", "runners.py"):
        shutil.copy(Path(asyncio.__file__).parent / name, tmp_path / "repository")
    training = peak(tmp_path, "training")
    assert peak(tmp_path, "resumed") < 1.05 * training
