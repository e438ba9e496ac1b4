"""Tells files that are almost the same: MinHash over their lines in an index of bands (rensa), then exactly.

A near-duplicate teaches nothing new, and one that is held out while its twin is trained on makes the model look
better than it is. (Broder, "On the resemblance and containment of documents", 1997; bands: Leskovec, Rajaraman,
Ullman, "Mining of Massive Datasets", 3.4.)
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np
from rensa import RMinHash, RMinHashLSH

from engine.data.pieces import cut

if TYPE_CHECKING:
    import numpy.typing as npt

REVISION = (2, RMinHash.ALGORITHM_VERSION)
"Changes when other files would count as near-duplicates; part of every store's key."
SIMILARITY = 0.85
"Share of all the distinct lines of two files that both hold, from which on the second is left out."
_BANDS, _ROWS = 16, 8
"Two files of similarity s agree in a band with probability 1 - (1 - s^8)^16: 0.994 at 0.85, 0.06 at 0.5."
_FEWEST_LINES = 12
"Distinct lines; shorter files are alike by custom (package marks, small settings), and too short to matter."
_TELLING = 12
"Characters; shorter lines are in every file."
_COMPARED = 16
"Files of the index that a file is compared with, so that a thousand files half alike take no million comparisons."
_REMEMBERED = 64
"Files whose lines are kept for the next comparison, instead of reading them again."


class NearDuplicates:
    """Files that are no near-duplicates of one another, by number.

    Args:
        text_of: The text of a file once more, by its number; asked for likely twins only.
    """

    def __init__(self, text_of: Callable[[int], str]) -> None:
        self._index = RMinHashLSH(threshold=SIMILARITY, num_perm=_BANDS * _ROWS, num_bands=_BANDS)
        self._lines_of = functools.lru_cache(maxsize=_REMEMBERED)(lambda number: distinct_lines(text_of(number)))

    def add(self, number: int, text: str) -> int | None:
        """Takes a file in, or tells the number of an earlier one that it is almost the same as, which then stands."""
        lines = distinct_lines(text)
        if len(lines) < _FEWEST_LINES:
            return None
        sketch = RMinHash(num_perm=_BANDS * _ROWS, seed=0)
        sketch.update(list(lines))
        for other in sorted(self._index.query(sketch))[:_COMPARED]:
            if similarity(lines, self._lines_of(other)) >= SIMILARITY:
                return int(other)
        self._index.insert(number, sketch)
        return None


def distinct_lines(text: str) -> set[str]:
    """The lines of a text, without the white space around them."""
    return {line for piece in cut(text) for line in map(str.strip, piece.split("\n"))}


def similarity(a: set[str], b: set[str]) -> float:
    """Lines that both files hold, as a share of all their distinct lines."""
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)


def telling_lines(lines: Iterable[str]) -> npt.NDArray[np.uint32]:
    """The distinct lines that are long enough to tell a text, as numbers. Sorted."""
    hashes = {zlib.crc32(line.encode("utf-8", "replace")) for each in lines if len(line := each.strip()) >= _TELLING}
    return np.sort(np.fromiter(hashes, dtype=np.uint32, count=len(hashes)))
