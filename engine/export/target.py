"""Creates the folder of an export: atomically, and never over an existing one."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from engine import durable
from engine.errors.export import EXPORT_EXISTS, EXPORT_FULL
from engine.errors.runs import OUTPUT_UNWRITABLE
from engine.quantities import format_bytes

_MARGIN = 32 * 2**20
"""Bytes for tokenizer, card and file system, in addition to the weights."""


@contextmanager
def new_folder(path: Path, weights: int) -> Iterator[Path]:
    """Yields a hidden folder beside `path`, renamed to `path` on success and removed on failure.

    Args:
        path: Must not exist.
        weights: Bytes to be written, besides small files.

    Raises:
        EliteError: EXPORT_EXISTS, EXPORT_FULL, OUTPUT_UNWRITABLE.
    """
    needed = weights + _MARGIN
    aside = path.with_name(f".{path.name}.{os.getpid()}.new")
    made: list[Path] = []
    try:
        _refuse_existing(path)
        made = _make_parents(path.parent)
        free = shutil.disk_usage(path.parent).free
        if free < needed:
            raise EXPORT_FULL(path=path, free=format_bytes(free), needed=format_bytes(needed))
        _remove_leftovers(path)
        aside.mkdir()
        yield aside
        _refuse_existing(path)
        durable.sync_tree(aside)
        durable.rename(aside, path)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        for folder in reversed(made):
            with contextlib.suppress(OSError):
                folder.rmdir()
        if _found_no_room(error):
            raise EXPORT_FULL(path=path, free="no space", needed=format_bytes(needed)) from error
        if isinstance(error, OSError):
            raise OUTPUT_UNWRITABLE(path=path, problem=error.strerror or error) from error
        raise


def _found_no_room(error: BaseException) -> bool:
    # numpy reports the items that it could not write.
    return durable.is_full(error) or " requested and " in str(error)


def _refuse_existing(path: Path) -> None:
    if os.path.lexists(path):
        raise EXPORT_EXISTS(path=path)


def _make_parents(folder: Path) -> list[Path]:
    """Creates the missing parent folders and returns them, outermost first."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    made: list[Path] = []
    try:
        for one in reversed(missing):
            one.mkdir()
            made.append(one)
    except OSError:
        for one in reversed(made):
            one.rmdir()
        raise
    return made


def _remove_leftovers(path: Path) -> None:
    """Removes the folders of killed exports to the same place."""
    for left in path.parent.glob(f".{path.name}.*.new"):
        number = left.name.removesuffix(".new").rpartition(".")[2]
        if number.isdigit() and not psutil.pid_exists(int(number)):
            shutil.rmtree(left, ignore_errors=True)
