"""Decides by a hash of each path which files are held out, so that a file keeps its side as the repository grows.

Only where the sizes of files bring the share of text too far from what is wanted, some of them change sides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import PurePosixPath

from engine.data.collect import SourceFile
from engine.quantities import counted

_WORTH_MEASURING = 512
"Bytes; where no file's path falls on the held-out side, a package mark of three lines is not chosen for it."

_TOLERANCE = 0.25
"How far the share of text may lie from the fraction, relative to it."
_SPARE = 2
"Files of the mean size by which it may lie from it in any case."


_FEWEST_TOKENS = 500
"""Held-out tokens below which a perplexity says little. Under the embedded model, the mean loss of 500 tokens of one of
this program's files varies by about 0.3 nats, a perplexity by a third."""


def few_held_out(tokens: int) -> str:
    """Returns the warning of a held-out part that is too small to measure with; empty for others."""
    if tokens >= _FEWEST_TOKENS:
        return ""
    return f"{counted(tokens, 'token')} held out: too few for perplexities before and after to mean much"


MORE_HELD_OUT = "add files, raise data.held_out_fraction, or score the result on other code: engine evaluate --repo DIR"
"The remedy for `few_held_out`."


def is_held_out(path: PurePosixPath, fraction: float) -> bool:
    """Tells whether a file, by its path within its repository, belongs to the share that is held out."""
    return _position(path) < fraction


def held_out_files(files: Sequence[SourceFile], fraction: float) -> list[bool]:
    """Decides for each file whether it is held out; of two or more, at least one is and at least one is not.

    Args:
        files: Or what stands for several files: the first one's path, and their size together.
        fraction: Share of their bytes that is wanted, within a quarter of it where their sizes allow.
    """
    held_out = [is_held_out(file.path, fraction) for file in files]
    if len(files) < 2:
        return held_out
    if not any(held_out):
        half = sum(file.size for file in files) / 2
        small = [index for index, file in enumerate(files) if file.size <= half]
        large = [index for index in small if files[index].size >= _WORTH_MEASURING]
        held_out[min(large or small or range(len(files)), key=lambda index: _position(files[index].path))] = True
    elif all(held_out):
        held_out[max(range(len(files)), key=lambda index: _position(files[index].path))] = False
    _balance(files, fraction, held_out)
    return held_out


def _balance(files: Sequence[SourceFile], fraction: float, held_out: list[bool]) -> None:
    """Moves as few files as can be, the largest first, until the share of their bytes is about the fraction."""
    total = sum(file.size for file in files)
    wanted = fraction * total
    # Few files cannot be split so finely.
    spare = max(_TOLERANCE * wanted, _SPARE * total / len(files))
    lowest, highest = wanted - spare, wanted + spare
    held = sum(file.size for file, out in zip(files, held_out, strict=True) if out)
    count = sum(held_out)
    for index in sorted(range(len(files)), key=lambda index: (-files[index].size, files[index].name)):
        if held <= highest or count == 1:
            break
        # A large one may leave too little: what fits is added below.
        if held_out[index] and (held - files[index].size >= lowest or files[index].size > highest):
            held_out[index] = False
            held -= files[index].size
            count -= 1
    if held > highest and count == 1:
        worth = [index for index, file in enumerate(files) if file.size >= _WORTH_MEASURING]
        [present] = [index for index, out in enumerate(held_out) if out]
        nearest = min([*worth, present], key=lambda index: (abs(files[index].size - wanted), index != present))
        held_out[present], held_out[nearest] = False, True
        held = files[nearest].size
    if held < lowest:
        for index in sorted(range(len(files)), key=lambda index: _position(files[index].path)):
            fits = held + files[index].size <= highest and sum(held_out) + 1 < len(files)
            if not held_out[index] and fits:
                held_out[index] = True
                held += files[index].size
            if held >= wanted:
                break


def _position(path: PurePosixPath) -> float:
    """Returns a number in [0, 1) that looks random, but depends on the path only."""
    digest = hashlib.blake2b(str(path).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
