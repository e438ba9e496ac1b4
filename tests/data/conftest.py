"""Repositories in a temporary folder, and the demo tokenizer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from engine.assets import asset

Write = Callable[[dict[str, str | bytes]], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes files below tmp_path/repository and returns that folder."""

    def write_files(files: dict[str, str | bytes]) -> Path:
        root = tmp_path / "repository"
        for name, content in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return root

    return write_files


def run_git(root: Path, *arguments: str) -> None:
    """git with nobody's configuration."""
    identity = {f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    subprocess.run(
        ["git", "-c", "protocol.file.allow=always", "-C", str(root), *arguments],
        check=True,
        capture_output=True,
        env={**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, **identity},
    )


@pytest.fixture
def as_plain_user() -> Iterator[Path]:
    """An empty folder of a user for whom permissions count: of nobody, where the tests run as root."""
    folder = Path(tempfile.mkdtemp())
    is_root = os.geteuid() == 0
    if is_root:
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
    try:
        yield folder
    finally:
        if is_root:
            os.seteuid(0)
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o700)
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def stdlib() -> Path:
    """The standard library's sources."""
    return Path(sysconfig.get_paths()["stdlib"])


@pytest.fixture(scope="session")
def demo_tokenizer() -> Tokenizer:
    """The embedded demo model's tokenizer, as the tokenizers library has it."""
    return Tokenizer.from_file(str(asset("demo-model", "tokenizer.json")))


def module(name: str, lines: int = 40) -> str:
    """A plausible source file that differs from others by its name."""
    return "".join(f"def {name}_{i}(x):\n    return x + {i}\n\n" for i in range(lines // 3))
