"""Lists and removes the 4-bit copies of models that are kept (engine.models.four_bit_cache). Imports no torch."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from engine import atomic_dir

KEPT = 3
"""Copies that stay when another is made, those used last."""
KEY_LENGTH = 32
"""Characters of a copy's name, the beginning of a SHA-256."""


def user_cache() -> Path:
    """Returns the folder of the copies."""
    import platformdirs

    return platformdirs.user_cache_path("elite-tui") / "four-bit-models"


def open_lock(copy: Path) -> BinaryIO:
    """Opens the file whose lock says that a copy is made or used; it outlives the copy."""
    descriptor = os.open(copy.with_name(f"{key_of(copy)}.lock"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    return os.fdopen(descriptor, "wb")


@dataclass(frozen=True, kw_only=True)
class KeptCopy:
    """A 4-bit copy in the cache."""

    path: Path
    model: str
    "Folder of the model that it was made of; empty where the copy is unfinished or its manifest is damaged."
    files: list[Any]
    "Those of the model, as in the copy's key."
    size: int
    "Bytes."
    used: float
    "time.time() of its last use."


def kept_copies(cache: Path | None = None) -> list[KeptCopy]:
    """Lists the copies, those used last first. Unfinished ones of a killed process count too."""
    found = []
    for path in _entries(cache or user_cache()):
        with contextlib.suppress(OSError):
            size = sum(file.stat().st_size for file in path.iterdir())
            model, files = _origin_of(path)
            found.append(KeptCopy(path=path, model=model, files=files, size=size, used=path.stat().st_mtime))
    return sorted(found, key=lambda copy: copy.used, reverse=True)


def _entries(cache: Path) -> Iterator[Path]:
    """Yields the folders of copies, and nothing else that may lie beside them."""
    if not cache.is_dir():
        return
    for path in cache.iterdir():
        key = key_of(path)
        if len(key) == KEY_LENGTH and set(key) <= set("0123456789abcdef") and path.is_dir() and not path.is_symlink():
            yield path


def key_of(path: Path) -> str:
    """Returns the key of a copy, or of an unfinished one (engine.atomic_dir)."""
    return path.name.removeprefix(".").removesuffix(".new").removesuffix(".old")


def _origin_of(path: Path) -> tuple[str, list[Any]]:
    try:
        about = atomic_dir.read_about(path)
    except atomic_dir.DamagedError:
        return "", []
    return str(about.get("model", "")), list(about.get("files", []))


def remove_copy(path: Path) -> bool:
    """Removes a copy unless a process makes or loads it now; returns whether it is gone."""
    try:
        with open_lock(path) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path)  # the lock stays: another process may be waiting for it
    except OSError:
        return False
    return True


def make_room(final: Path, model: str, files: list[Any]) -> None:
    """Makes room for a new copy: removes those of earlier files of the model, and all but the last used."""
    others = [copy for copy in kept_copies(final.parent) if key_of(copy.path) != final.name]
    superseded = [copy for copy in others if not copy.model or (copy.model == model and copy.files != files)]
    others = [copy for copy in others if copy not in superseded]
    for copy in [*superseded, *others[KEPT - 1 :]]:
        remove_copy(copy.path)
