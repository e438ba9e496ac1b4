"""Commands in documents that are marked as runnable (```sh run, ```sh run-slow) run, as they are written."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"^```sh (run|run-slow)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks():
    for page in PAGES:
        for number, (speed, text) in enumerate(BLOCK.findall(page.read_text(encoding="utf-8")), 1):
            marks = [pytest.mark.slow] if speed == "run-slow" else []
            yield pytest.param(text, id=f"{page.name}-{number}", marks=marks)


@pytest.fixture
def home(tmp_path):
    """A home folder with ~/src/project, and a checkout with .venv beside it."""
    project = tmp_path / "src" / "project"
    project.mkdir(parents=True)
    for name in ("queues.py", "locks.py", "runners.py", "timeouts.py"):
        shutil.copy(Path(asyncio.__file__).parent / name, project)
    checkout = tmp_path / "elite-tui"
    (checkout / ".venv" / "bin").mkdir(parents=True)
    for name in ("engine", "elite-tui"):
        script = checkout / ".venv" / "bin" / name
        module = "engine.cli" if name == "engine" else "elite_tui.__main__"
        script.write_text(
            f'#!/bin/sh\nexec "{sys.executable}" -c "import sys; from {module} import main; sys.exit(main())" "$@"\n'
        )
        script.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("text", blocks())
def test_runnable_commands_of_the_documents_run(text, home):
    path = os.pathsep.join((str(home / "elite-tui" / ".venv" / "bin"), os.environ["PATH"]))
    environment = {**os.environ, "HOME": str(home), "PYTHONPATH": str(ROOT), "TERM": "dumb", "PATH": path}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=home / "elite-tui",
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_are_runnable_commands():
    assert sum(1 for _ in blocks()) >= 4
