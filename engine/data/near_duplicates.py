"""Tells files that are almost the same: MinHash over their lines (rensa), its bands compared by sorting, then exactly.

A near-duplicate teaches nothing new, and one that is held out while its twin is trained on makes the model look
better than it is. (Broder, "On the resemblance and containment of documents", 1997; bands: Leskovec, Rajaraman,
Ullman, "Mining of Massive Datasets", 3.4.) Sorting needs 128 bytes a file; rensa's own index takes 1,670, and
datasketch's 6,000, which for a million files is more than everything else together.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from rensa import RMinHash

from engine.tokenization.pieces import cut

if TYPE_CHECKING:
    import numpy.typing as npt

REVISION = (3, RMinHash.ALGORITHM_VERSION)
"Changes when other files would count as near-duplicates; part of every store's key."
SIMILARITY = 0.85
"Share of all the distinct lines of two files that both hold, from which on the second is left out."
_BANDS, _ROWS = 16, 8
"Two files of similarity s agree in a band with probability 1 - (1 - s^8)^16: 0.994 at 0.85, 0.06 at 0.5."
_FEWEST_LINES = 12
"Distinct lines; shorter files are alike by custom (package marks, small settings), and too short to matter."
_TELLING = 12
"Characters; shorter lines are in every file."
_COMPARED = 8
"Files of one band that a file is compared with, so that a thousand files alike take no million comparisons."
_FACTORS = np.random.Generator(np.random.PCG64(0)).integers(0, 1 << 63, _ROWS, dtype=np.uint64) * np.uint64(
    2
) + np.uint64(1)
"Of a band's hash: a sum of its rows' products with odd numbers, modulo 2^64."
_BLOCK = 1024
"Files whose bands are kept together."
_REMEMBERED = 64
"Files whose lines are kept for the next comparison, instead of reading them again."


class NearDuplicates:
    """Files, by number."""

    def __init__(self) -> None:
        self._numbers: list[int] = []
        self._bands: list[npt.NDArray[np.uint64]] = []
        "Blocks of rows, one row a file; one array that grows would be there twice at times."

    def add(self, number: int, text: str) -> None:
        """Takes in a file; numbers ascend."""
        lines = distinct_lines(text)
        if len(lines) < _FEWEST_LINES:
            return
        sketch = RMinHash(num_perm=_BANDS * _ROWS, seed=0)
        sketch.update(list(lines))
        rows = np.array(sketch.digest(), dtype=np.uint64).reshape(_BANDS, _ROWS)
        place = len(self._numbers) % _BLOCK
        if place == 0:
            self._bands.append(np.empty((_BLOCK, _BANDS), dtype=np.uint64))
        self._bands[-1][place] = (rows * _FACTORS).sum(axis=1)
        self._numbers.append(number)

    def find(self, text_of: Callable[[int], str]) -> dict[int, int]:
        """Maps each file that is almost the same as an earlier one, itself not mapped, to the number of that one.

        Args:
            text_of: The text of a file once more; asked for likely pairs only.
        """
        lines_of = functools.lru_cache(maxsize=_REMEMBERED)(lambda number: distinct_lines(text_of(number)))
        found: dict[int, int] = {}
        for number, likely in sorted(self._candidates().items()):
            earlier = (other for other in sorted(likely) if other not in found)
            for other in earlier:
                if similarity(lines_of(number), lines_of(other)) >= SIMILARITY:
                    found[number] = other
                    break
        return found

    def _candidates(self) -> dict[int, set[int]]:
        """Returns, for each file, the earlier ones that agree with it in a band, at most _COMPARED of each band."""
        pairs: dict[int, set[int]] = {}
        numbers = np.array(self._numbers, dtype=np.int64)
        for number in range(_BANDS if len(numbers) else 0):
            band = np.concatenate([block[:, number] for block in self._bands])[: len(numbers)]
            order = np.argsort(band, kind="stable")
            borders = np.flatnonzero(np.diff(band[order])) + 1
            for first, last in pairwise([0, *borders.tolist(), len(order)]):
                if last - first < 2:
                    continue
                members = numbers[order[first:last]].tolist()
                for position in range(1, len(members)):
                    some = members[: min(position, _COMPARED - 1)]
                    pairs.setdefault(members[position], set()).update([*some, members[position - 1]])
        return pairs


def distinct_lines(text: str) -> set[str]:
    """Returns the lines of a text, without the white space around them."""
    return set().union(*(map(str.strip, piece.split("\n")) for piece in cut(text)))


def similarity(a: set[str], b: set[str]) -> float:
    """Returns the lines that both files hold, as a share of all their distinct lines."""
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)


def telling_lines(lines: Iterable[str]) -> npt.NDArray[np.uint32]:
    """Returns the distinct lines that are long enough to tell a text, as numbers. Sorted."""
    hashes = {zlib.crc32(line.encode("utf-8", "replace")) for each in lines if len(line := each.strip()) >= _TELLING}
    return np.sort(np.fromiter(hashes, dtype=np.uint32, count=len(hashes)))
