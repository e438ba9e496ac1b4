"""Tells files that are almost the same: MinHash over their lines in an index of bands (rensa), then exactly.

A near-duplicate teaches nothing new, and one that is held out while its twin is trained on makes the model look
better than it is. (Broder, "On the resemblance and containment of documents", 1997; bands: Leskovec, Rajaraman,
Ullman, "Mining of Massive Datasets", 3.4.)
"""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Callable
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
_COMPARED = 16
"Files of the index that a file is compared with, so that a thousand files half alike take no million comparisons."
_REMEMBERED = 256
"Files whose lines are kept for the next comparison, instead of reading them again."


class NearDuplicates:
    """Files that are no near-duplicates of one another, by number.

    Args:
        text_of: The text of a file once more, by its number; asked for likely twins only.
    """

    def __init__(self, text_of: Callable[[int], str]) -> None:
        self._index = RMinHashLSH(threshold=SIMILARITY, num_perm=_BANDS * _ROWS, num_bands=_BANDS)
        self._text_of = text_of
        self._lines: OrderedDict[int, npt.NDArray[np.uint32]] = OrderedDict()

    def add(self, number: int, text: str) -> int | None:
        """Takes a file in, or tells the number of an earlier one that it is almost the same as, which then stands."""
        lines = line_hashes(text)
        if len(lines) < _FEWEST_LINES:
            return None
        sketch = RMinHash(num_perm=_BANDS * _ROWS, seed=0)
        sketch.update([line.tobytes() for line in lines])
        for other in sorted(self._index.query(sketch))[:_COMPARED]:
            if similarity(lines, self._lines_of(other)) >= SIMILARITY:
                return int(other)
        self._index.insert(number, sketch)
        self._remember(number, lines)
        return None

    def _lines_of(self, number: int) -> npt.NDArray[np.uint32]:
        if number not in self._lines:
            self._remember(number, line_hashes(self._text_of(number)))
        self._lines.move_to_end(number)
        return self._lines[number]

    def _remember(self, number: int, lines: npt.NDArray[np.uint32]) -> None:
        self._lines[number] = lines
        if len(self._lines) > _REMEMBERED:
            self._lines.popitem(last=False)


def line_hashes(text: str) -> npt.NDArray[np.uint32]:
    """The distinct lines of a text, without the white space around them, as numbers. Sorted."""
    lines = (line.strip() for piece in cut(text) for line in piece.split("\n"))
    hashes = {zlib.crc32(line.encode("utf-8", "surrogatepass")) for line in lines}
    return np.sort(np.fromiter(hashes, dtype=np.uint32, count=len(hashes)))


def similarity(a: npt.NDArray[np.uint32], b: npt.NDArray[np.uint32]) -> float:
    """Lines that both files hold, as a share of all their distinct lines."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)
