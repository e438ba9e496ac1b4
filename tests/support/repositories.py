"""Makes repositories for tests."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

Write = Callable[[dict[str, str | bytes]], Path]
"Writes files below a folder of the test, and returns that folder."


def run_git(root: Path, *arguments: str) -> None:
    """Runs git without any user's configuration."""
    identity = {f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    subprocess.run(
        ["git", "-c", "protocol.file.allow=always", "-C", str(root), *arguments],
        check=True,
        capture_output=True,
        env={**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, **identity},
    )


def module(name: str, lines: int = 40) -> str:
    """Makes a plausible source file that differs from others by its name."""
    return "".join(f"def {name}_{i}(x):\n    return x + {i}\n\n" for i in range(lines // 3))
