"""Mounts a small tmpfs for real ENOSPC, in a mount namespace that ends with its process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    probe = subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False)
    return probe.returncode == 0


needs_mount = pytest.mark.skipif(not _can_mount(), reason="needs a mount namespace of its own")


def run_mounted(script: str, folder: Path, size: str) -> str:
    """Runs a script with the path of a tmpfs of this size as its argument, and returns its output."""
    mount = folder / "mounted"
    mount.mkdir()
    command = f'mount -t tmpfs -o size={size} none "{mount}" && exec "{sys.executable}" -c "$SCRIPT" "{mount}"'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", command],
        cwd=ROOT,
        env={**os.environ, "SCRIPT": script, "PYTHONPATH": f"{ROOT}:{ROOT}/tests", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
