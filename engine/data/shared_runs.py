"""Finds files that share runs of six lines, so that none of them is held out while another one is trained on.

A run is six lines that follow each other, without white space around them and without empty lines. Of many files
only every second, fourth, … run is looked at, by its hash: the same ones in every file, in bounded memory.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from engine.tokenization.pieces import cut

if TYPE_CHECKING:
    import numpy.typing as npt

LINES = 6
_FEWEST_LETTERS = 48
"Bytes of a run that says something: six lines of closing brackets do not."
_MOST_RUNS = 3_000_000
"Runs that are kept: 12 bytes each."
_MOST_FILES = 1 / 2
"Share of all files up to which a run puts them together: what more of them hold is everybody's."
_LARGEST = 1 / 3
"Share of all bytes up to which files are put together: a set of all files could not be split."
_FACTORS = np.random.Generator(np.random.PCG64(6)).integers(1, 1 << 63, LINES, dtype=np.uint64) * np.uint64(
    2
) + np.uint64(1)


def runs_of(lines: Iterable[bytes]) -> npt.NDArray[np.uint64]:
    """Hashes each run of the lines. Shape (runs,)."""
    kept = list(filter(None, map(bytes.strip, lines)))
    count = len(kept) - LINES + 1
    if count <= 0:
        return np.empty(0, dtype=np.uint64)
    hashes = np.fromiter(map(zlib.crc32, kept), dtype=np.uint64, count=len(kept))
    ends = np.cumsum(np.fromiter(map(len, kept), dtype=np.int64, count=len(kept)))
    runs = np.zeros(count, dtype=np.uint64)
    for place in range(LINES):
        runs += hashes[place : place + count] * _FACTORS[place]
    # The low bits of a product depend on the low bits of its factors only.
    runs ^= runs >> np.uint64(29)
    sizes = ends[LINES - 1 :] - np.concatenate([np.zeros(1, dtype=np.int64), ends[: count - 1]])
    told: npt.NDArray[np.uint64] = runs[sizes >= _FEWEST_LETTERS]
    return told


def runs_of_text(text: str) -> npt.NDArray[np.uint64]:
    """Hashes the runs of a text; those across the borders of very long pieces are passed over."""
    return np.concatenate([runs_of(piece.encode("utf-8", "replace").split(b"\n")) for piece in cut(text)])


class SharedRuns:
    """The runs of files, by number."""

    def __init__(self) -> None:
        self._runs: list[npt.NDArray[np.uint64]] = []
        self._files: list[npt.NDArray[np.uint32]] = []
        self._count = 0
        self._mask = np.uint64(0)

    def add(self, number: int, text: str) -> None:
        """Takes in a file."""
        runs = np.sort(self._some(runs_of_text(text)))
        runs = runs[np.append(True, runs[1:] != runs[:-1])[: len(runs)]]
        self._runs.append(runs)
        self._files.append(np.full(len(runs), number, dtype=np.uint32))
        self._count += len(runs)
        while self._count > _MOST_RUNS:
            self._halve()

    def _some(self, runs: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        return runs[runs & self._mask == 0] if self._mask else runs

    def _halve(self) -> None:
        self._mask = (self._mask << np.uint64(1)) | np.uint64(1)
        runs, files = self._all()
        kept = runs & self._mask == 0
        self._runs, self._files = [runs[kept]], [files[kept]]
        self._count = len(self._runs[0])

    def _all(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32]]:
        if not self._runs:
            return np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.uint32)
        return np.concatenate(self._runs), np.concatenate(self._files)

    def renumber(self, places: Mapping[int, int]) -> None:
        """Gives the files other numbers, and forgets those without one."""
        runs, files = self._all()
        if not len(files):
            return
        numbers = np.full(int(files.max()) + 1, -1, dtype=np.int64)
        for number, place in places.items():
            if number < len(numbers):
                numbers[number] = place
        kept = numbers[files] >= 0
        self._runs, self._files = [runs[kept]], [numbers[files[kept]].astype(np.uint32)]
        self._count = int(kept.sum())

    def clusters(self, sizes: Sequence[int]) -> list[int]:
        """Returns for each file the lowest number of those that it is to stay together with.

        Args:
            sizes: Of the files by number, in bytes.
        """
        parent = list(range(len(sizes)))
        weight = list(sizes)
        limit = _LARGEST * sum(sizes)

        def top(number: int) -> int:
            while parent[number] != number:
                parent[number] = parent[parent[number]]
                number = parent[number]
            return number

        runs, files = self._all()
        order = np.lexsort((files, runs))
        runs, files = runs[order], files[order]
        starts = np.flatnonzero(np.append(True, runs[1:] != runs[:-1])[: len(runs)])
        counts = np.diff(np.append(starts, len(runs)))
        some = (counts > 1) & (counts <= max(2, _MOST_FILES * len(sizes)))
        spans = list(zip(starts[some].tolist(), (starts[some] + counts[some]).tolist(), strict=True))
        # What few files share says more than what many do, and goes first.
        for first, last in sorted(spans, key=lambda span: (span[1] - span[0], span[0])):
            begin = top(int(files[first]))
            for other in files[first + 1 : last].tolist():
                end = top(other)
                if begin != end and weight[begin] + weight[end] <= limit:
                    begin, end = min(begin, end), max(begin, end)
                    parent[end] = begin
                    weight[begin] += weight[end]
        return [top(number) for number in range(len(sizes))]

    def leak(self, held_out: Sequence[bool]) -> float:
        """Returns the share of the runs of held-out files that a training file holds too.

        Args:
            held_out: For each file by number.
        """
        runs, files = self._all()
        side = np.array(held_out, dtype=bool)[files] if len(files) else np.empty(0, dtype=bool)
        kept, trained = runs[side], np.sort(runs[~side])
        if not len(kept) or not len(trained):
            return 0.0
        places = np.minimum(np.searchsorted(trained, kept), len(trained) - 1)
        return float((trained[places] == kept).mean())
