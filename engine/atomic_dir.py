"""Atomic directories, which are complete on disk or absent, and detect damage by checksums.

A folder is written under a temporary name, each file is synced and read back, and only then is the folder renamed.
manifest.json holds the size and SHA-256 of each file, the writer's metadata, and a digest of itself.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine import durable

MANIFEST = "manifest.json"
FORMAT = 2
_CHUNK = 1 << 22


class DamagedError(Exception):
    """A folder is damaged. The message names the file and the reason."""


@dataclass(frozen=True, kw_only=True)
class AtomicDir:
    """A folder whose files match its manifest."""

    path: Path
    about: Mapping[str, Any]
    "The writer's metadata."

    def read(self, name: str) -> bytes:
        """Reads one file."""
        return (self.path / name).read_bytes()


def aside_of(final: Path) -> Path:
    """Returns the temporary path that a folder is written to before it is renamed."""
    return final.with_name(f".{final.name}.new")


def old_of(final: Path) -> Path:
    """Returns the path that a folder is renamed to while another replaces it."""
    return final.with_name(f".{final.name}.old")


def write(final: Path, files: Iterable[tuple[str, bytes]], about: Mapping[str, Any]) -> int:
    """Writes a folder, replaces one of the same name, and returns its bytes.

    Args:
        final: Its path, in an existing folder.
        files: Names and contents, produced one at a time, so that only one has to be in memory.
        about: JSON values for the manifest.

    Raises:
        OSError: it cannot be written; an existing folder is unchanged, and no temporary one is left.
    """
    aside = aside_of(final)
    try:
        size = _write_aside(aside, files, about)
        _replace(final, aside)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return size


def _write_aside(folder: Path, files: Iterable[tuple[str, bytes]], about: Mapping[str, Any]) -> int:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    entries: dict[str, dict[str, int | str]] = {}
    total = 0
    for name, data in files:
        durable.write_bytes(folder / name, data)
        entries[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        total += len(data)
    manifest = _manifest(entries, about)
    durable.write_bytes(folder / MANIFEST, manifest)
    durable.sync_path(folder)
    try:
        verify(folder)
    except DamagedError as error:
        raise OSError(errno.EIO, f"what was read back differs: {error}") from error
    return total + len(manifest)


def seal(final: Path, aside: Path, about: Mapping[str, Any], *, threads: int = 1) -> None:
    """Gives a folder that a library wrote its manifest, and puts it in the place of `final`, durably.

    Args:
        final: Its path; what is there is replaced.
        aside: The complete folder, on the same file system; files in folders below it are synced, not listed.
        about: JSON values for the manifest.
        threads: Files that are hashed at once.

    Raises:
        OSError: it cannot be written; `final` is as it was.
    """
    paths = [path for path in sorted(aside.iterdir()) if path.is_file() and path.name != MANIFEST]
    entries: dict[str, dict[str, int | str]] = {
        path.name: {"bytes": size, "sha256": digest}
        for path, (size, digest) in zip(paths, _measured(paths, threads), strict=True)
    }
    durable.write_bytes(aside / MANIFEST, _manifest(entries, about))
    durable.sync_tree(aside)
    _replace(final, aside)


def _manifest(entries: Mapping[str, Mapping[str, int | str]], about: Mapping[str, Any]) -> bytes:
    content = {"format": FORMAT, "files": entries, "about": about}
    return json.dumps({**content, "digest": _digest(content)}, indent=1).encode()


def read_about(folder: Path) -> Mapping[str, Any]:
    """Reads a folder's metadata without verifying its files.

    Raises:
        DamagedError: its manifest is damaged.
    """
    return dict(_read_manifest(folder)["about"])


def verify(folder: Path, *, suffix: str = "", most: int | None = None, threads: int = 1) -> AtomicDir:
    """Compares every byte of a folder with its manifest.

    Args:
        folder: Has a manifest.
        suffix: Only files whose names end so are compared.
        most: Of files above so many bytes only the size is compared; None hashes all.
        threads: Files that are hashed at once.

    Raises:
        DamagedError: a file is missing, shorter, longer or different.
    """
    manifest = _read_manifest(folder)
    hashed: list[str] = []
    for name, entry in manifest["files"].items():
        if not name.endswith(suffix):
            continue
        path = folder / name
        if not path.is_file():
            raise DamagedError(f"{name} is missing")
        if path.stat().st_size != entry["bytes"]:
            raise DamagedError(f"{name} has {path.stat().st_size} bytes instead of {entry['bytes']}")
        if most is None or entry["bytes"] <= most:
            hashed.append(name)
    found = _measured([folder / name for name in hashed], threads)
    for name, (_, digest) in zip(hashed, found, strict=True):
        if digest != manifest["files"][name]["sha256"]:
            raise DamagedError(f"{name} has another SHA-256 than when it was written")
    return AtomicDir(path=folder, about=manifest["about"])


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest: Any = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"{MANIFEST} cannot be read ({error})") from error
    if not isinstance(manifest, dict):
        raise DamagedError(f"{MANIFEST} is not a manifest")
    if manifest.get("format") != FORMAT:
        raise DamagedError(f"{MANIFEST} is of format {manifest.get('format')}, this program reads {FORMAT}")
    if manifest.pop("digest", None) != _digest(manifest):
        raise DamagedError(f"{MANIFEST} was changed after it was written")
    return manifest


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _measured(paths: Sequence[Path], threads: int) -> Iterable[tuple[int, str]]:
    """Measures files in their order, `threads` at once; hashing leaves the interpreter to other threads."""
    if threads == 1:
        return map(_measure, paths)
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(_measure, paths))


def _measure(path: Path) -> tuple[int, str]:
    """Computes size and SHA-256 of a file, which need not fit into memory."""
    found = hashlib.sha256()
    size = 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                found.update(chunk)
                size += len(chunk)
    except OSError as error:
        raise DamagedError(f"{path.name} cannot be read ({error.strerror})") from error
    return size, found.hexdigest()


def _replace(final: Path, aside: Path) -> None:
    """Renames a complete folder into place. A folder cannot be renamed over a full one, so the old one moves first."""
    old = old_of(final)
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    try:
        aside.rename(final)
    except BaseException:
        if old.exists():
            old.rename(final)
        raise
    durable.sync_path(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def heal(final: Path) -> None:
    """Rolls back a replacement that a killed process left incomplete, by renaming the old folder back.

    Raises:
        OSError: the folder cannot be renamed.
    """
    if not final.exists() and old_of(final).exists():
        old_of(final).rename(final)
