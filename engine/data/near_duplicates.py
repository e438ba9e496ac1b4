"""Tells files that are almost the same: MinHash over their lines, bands of it compared by sorting, then exactly.

A near-duplicate teaches nothing new, and one that is held out while its twin is trained on makes the model look
better than it is. (Broder, "On the resemblance and containment of documents", 1997; bands: Leskovec, Rajaraman,
Ullman, "Mining of Massive Datasets", 3.4.) 128 bytes a file, where an index of Python objects takes 6,000.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from engine.data.pieces import cut

if TYPE_CHECKING:
    import numpy.typing as npt

REVISION = 1
"Raised when other files would count as near-duplicates; part of every store's key."
SIMILARITY = 0.85
"Share of all the distinct lines of two files that both hold, from which on the second is left out."
_BANDS, _ROWS = 16, 8
"Two files of similarity s agree in a band with probability 1 - (1 - s^8)^16: 0.994 at 0.85, 0.06 at 0.5."
_FEWEST_LINES = 12
"Distinct lines; shorter files are alike by custom (package marks, small settings), and too short to matter."
_BATCH = 4096
"Lines hashed at once, so that a file of any length takes two megabytes."
_COMPARED = 8
"Files of one band that a file is compared with, so that a thousand files alike take no million comparisons."

_rng = np.random.Generator(np.random.PCG64(0))
# h -> a h + b mod 2^32 with an odd a is a permutation of the 32-bit numbers.
_FACTORS = _rng.integers(0, 1 << 31, _BANDS * _ROWS, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
_SUMMANDS = _rng.integers(0, 1 << 32, _BANDS * _ROWS, dtype=np.uint32)
_BAND_FACTORS = _rng.integers(0, 1 << 63, _ROWS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


class NearDuplicates:
    """Files, numbered as they are added."""

    def __init__(self) -> None:
        self._numbers: list[int] = []
        self._bands: list[npt.NDArray[np.uint64]] = []
        self._added = 0

    def add(self, text: str) -> None:
        """Takes in the next file."""
        lines = line_hashes(text)
        if len(lines) >= _FEWEST_LINES:
            self._numbers.append(self._added)
            self._bands.append(_band_hashes(lines))
        self._added += 1

    def find(self, text_of: Callable[[int], str]) -> set[int]:
        """Numbers of the files that are almost the same as one of a lower number which is not itself among them.

        Args:
            text_of: The text of a file once more; asked for likely pairs only.
        """
        lines_of = functools.lru_cache(maxsize=256)(lambda number: line_hashes(text_of(number)))
        candidates = self._candidates()
        found: set[int] = set()
        for number in sorted(candidates):
            earlier = [other for other in sorted(candidates[number]) if other not in found]
            if any(similarity(lines_of(number), lines_of(other)) >= SIMILARITY for other in earlier):
                found.add(number)
        return found

    def _candidates(self) -> dict[int, set[int]]:
        """For each file the earlier ones that agree with it in a band, at most _COMPARED of each band."""
        pairs: dict[int, set[int]] = {}
        if not self._bands:
            return pairs
        bands, numbers = np.stack(self._bands), np.array(self._numbers)
        for band in bands.T:
            order = np.argsort(band, kind="stable")
            borders = np.flatnonzero(np.diff(band[order])) + 1
            for group in np.split(order, borders) if len(borders) < len(order) - 1 else ():
                members = numbers[group].tolist()
                for position in range(1, len(members)):
                    first = members[: min(position, _COMPARED - 1)]
                    pairs.setdefault(members[position], set()).update([*first, members[position - 1]])
        return pairs


def line_hashes(text: str) -> npt.NDArray[np.uint32]:
    """The distinct lines of a text, without the white space around them, as numbers. Sorted."""
    lines = (line.strip() for piece in cut(text) for line in piece.split("\n"))
    hashes = {zlib.crc32(line.encode("utf-8", "surrogatepass")) for line in lines}
    return np.sort(np.fromiter(hashes, dtype=np.uint32, count=len(hashes)))


def similarity(a: npt.NDArray[np.uint32], b: npt.NDArray[np.uint32]) -> float:
    """Lines that both files hold, as a share of all their distinct lines."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


def _band_hashes(lines: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint64]:
    """One number for each band of the file's MinHash. Shape (_BANDS,)."""
    smallest = np.full(_BANDS * _ROWS, np.iinfo(np.uint32).max, dtype=np.uint32)
    for start in range(0, len(lines), _BATCH):
        permuted = lines[start : start + _BATCH, None] * _FACTORS + _SUMMANDS
        np.minimum(smallest, permuted.min(axis=0), out=smallest)
    bands: npt.NDArray[np.uint64] = (smallest.reshape(_BANDS, _ROWS).astype(np.uint64) * _BAND_FACTORS).sum(axis=1)
    return bands
