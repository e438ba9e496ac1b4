"""Repositories in a temporary folder, and the demo tokenizer."""

from __future__ import annotations

import os
import shutil
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.repositories import Write
from tokenizers import Tokenizer

from engine.assets import asset


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
