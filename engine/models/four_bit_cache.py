"""Keeps 4-bit copies of models, so that a model is quantised once, and later starts read a quarter of its bytes.

A copy belongs to files, by their samples (engine.models.base_fingerprint), sizes and times of change, and to the
settings that decide its codes. Hashing the contents instead would read the whole model, which takes as long as to
quantise it again on a GPU. A copy is an atomic directory, readable by its owner alone. Its files are compared with
their SHA-256 before each use; a damaged copy is made again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from engine import atomic_dir
from engine.hardware.limits import count_cores
from engine.models.base_fingerprint import fingerprint
from engine.models.four_bit_folder import packed_bytes, packed_form, write_four_bit
from engine.models.kept_copies import KEY_LENGTH, make_room, open_lock, user_cache
from engine.models.placement import Placement
from engine.models.weight_map import WeightMap
from engine.quantities import format_bytes, format_seconds

SMALLEST = 1 << 30
"""Bytes of a model's files from which a copy is kept; below, quantising takes seconds."""
_LEFT_FREE = 2 << 30
"""Bytes of the disk that a copy leaves free."""
_VERSION = 1

Notify = Callable[[str], None]
"""Called with a sentence for the user."""


@contextlib.contextmanager
def four_bit_copy(
    weights: WeightMap,
    config: Any,
    placement: Placement,
    device: torch.device,
    *,
    notify: Notify,
    cache: Path | None = None,
) -> Iterator[Path | None]:
    """Yields the folder of a model's 4-bit copy, which is made where there is none; nobody removes it inside the block.

    Yields None where no copy is kept: of a small model, of one that the library quantises otherwise, or for want of
    disk space. What has been mapped from the folder stays valid after the block.

    Args:
        weights: Weights of a model that is not stored in 4 bits.
        config: Its transformers configuration.
        placement: Its compute dtype.
        device: Quantises.
        notify: Called when a copy is made, or cannot be.
        cache: Folder of the copies; None for the user's.
    """
    if sum(tensor.size for tensor in weights.folder.tensors.values()) < SMALLEST:
        yield None
        return
    with contextlib.ExitStack() as stack:
        yield _locked_copy(weights, config, placement, device, notify, cache or user_cache(), stack)


def _locked_copy(
    weights: WeightMap,
    config: Any,
    placement: Placement,
    device: torch.device,
    notify: Notify,
    cache: Path,
    stack: contextlib.ExitStack,
) -> Path | None:
    """Returns the copy's folder, with a lock on it in `stack`; None if there can be none."""
    try:
        _make_private(cache)
        final = cache / _key(weights, placement, device)
        lock = stack.enter_context(open_lock(final))
        fcntl.flock(lock, fcntl.LOCK_SH)
        problem = _problem(final)
        if problem is not None:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another process may have made it while this one waited
            problem = _problem(final)
        if problem is not None and not _make(final, problem, weights, config, placement, device, notify):
            stack.close()
            return None
        os.utime(final)
        fcntl.flock(lock, fcntl.LOCK_SH)
    except OSError as error:
        stack.close()
        notify(f"no 4-bit copy of the model is kept in {cache} ({error.strerror or error})")
        return None
    return final


def _make_private(cache: Path) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    cache.chmod(0o700)


def _key(weights: WeightMap, placement: Placement, device: torch.device) -> str:
    """Names the copy of these files with these settings."""
    about = {"files": _files(weights), **_settings(placement, device), "samples": dict(fingerprint(weights).parts)}
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:KEY_LENGTH]


def _files(weights: WeightMap) -> list[list[Any]]:
    """Lists the model's files with their sizes and times of change."""
    paths = {tensor.file for tensor in weights.folder.tensors.values()} | {weights.folder.path / "config.json"}
    stats = [(path.name, path.stat()) for path in sorted(paths)]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


def _settings(placement: Placement, device: torch.device) -> dict[str, Any]:
    versions = {name: importlib.metadata.version(name) for name in ("bitsandbytes", "transformers")}
    return {"version": _VERSION, "compute": placement.compute, "on": device.type, **versions}


def _problem(final: Path) -> str | None:
    """Returns why a copy cannot be used: "" if there is none, or its damage; None if it is whole."""
    if not final.is_dir():
        return ""
    try:
        atomic_dir.verify(final, threads=count_cores())
    except atomic_dir.DamagedError as error:
        return str(error)
    return None


def _make(
    final: Path,
    problem: str,
    weights: WeightMap,
    config: Any,
    placement: Placement,
    device: torch.device,
    notify: Notify,
) -> bool:
    """Makes a copy durably; returns whether there is one now.

    Raises:
        OSError: a file cannot be read or written; nothing of it is left.
    """
    shutil.rmtree(final, ignore_errors=True)  # damaged
    form = packed_form(weights, config, placement)
    tensors = weights.folder.tensors
    if form is None or 2 * sum(tensors[name].size for name in form.modules) < sum(t.size for t in tensors.values()):
        return False  # most of it would stay as it is
    files, model = _files(weights), str(weights.folder.path.resolve())
    make_room(final, model, files)
    size, free = packed_bytes(weights, form), shutil.disk_usage(final.parent).free
    if size + _LEFT_FREE > free:
        notify(
            f"no 4-bit copy of the model is kept: {final.parent} has {format_bytes(free)} free of {format_bytes(size)}"
        )
        return False
    began = time.monotonic()
    reason = f"the 4-bit copy is damaged ({problem}): " if problem else ""
    notify(
        f"{reason}the model is quantised layer by layer, once; its copy takes {format_bytes(size)} in {final.parent}"
    )
    aside = atomic_dir.aside_of(final)
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(mode=0o700)
        write_four_bit(aside, weights, form, placement, device)
        for path in aside.iterdir():
            path.chmod(0o600)
        if _files(weights) != files:
            raise OSError("the model's files changed meanwhile")
        about = {"model": model, "files": files, **_settings(placement, device)}
        atomic_dir.seal(final, aside, about, threads=count_cores())
        (final / atomic_dir.MANIFEST).chmod(0o600)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    notify(f"quantised in {format_seconds(time.monotonic() - began)}; the next start reads the copy")
    return True
