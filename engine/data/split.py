"""Which files are held out of training: decided by each path alone, so that it stays so as the repository grows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import PurePosixPath

from engine.data.collect import SourceFile

_WORTH_MEASURING = 512
"Bytes; where no file's path falls on the held-out side, a package mark of three lines is not chosen for it."


def is_held_out(path: PurePosixPath, fraction: float) -> bool:
    """Whether a file, by its path within its repository, belongs to the share that is held out."""
    return _position(path) < fraction


def held_out_files(files: Sequence[SourceFile], fraction: float) -> list[bool]:
    """For each file whether it is held out; at least one is, and at least one is not, of two or more."""
    held_out = [is_held_out(file.path, fraction) for file in files]
    if len(files) < 2:
        return held_out
    if not any(held_out):
        large = [index for index, file in enumerate(files) if file.size >= _WORTH_MEASURING]
        held_out[min(large or range(len(files)), key=lambda index: _position(files[index].path))] = True
    elif all(held_out):
        held_out[max(range(len(files)), key=lambda index: _position(files[index].path))] = False
    return held_out


def _position(path: PurePosixPath) -> float:
    """A number in [0, 1) that looks random, but depends on the path only."""
    digest = hashlib.blake2b(str(path).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
