"""Tells files that are almost the same: MinHash over their lines, found again by locality-sensitive hashing.

A near-duplicate teaches nothing new, and one that is held out while its twin is trained on makes the model look
better than it is. (Broder, "On the resemblance and containment of documents", 1997; computed by datasketch.)
"""

from __future__ import annotations

import zlib

from datasketch import MinHash, MinHashLSH

REVISION = 1
"Raised when other files would count as near-duplicates; part of every store's key."
SIMILARITY = 0.85
"Share of all the distinct lines of two files that both hold, from which on the second is left out."
_PERMUTATIONS = 128
"The similarity is estimated with a standard error of at most 0.5 / sqrt(128) = 0.044."
_FEWEST_LINES = 12
"Distinct lines; shorter files are alike by custom (package marks, small settings), and too short to matter."
_BATCH = 4096
"Lines hashed at once, so that a file of any length takes two megabytes."


class NearDuplicates:
    """The files kept so far."""

    def __init__(self) -> None:
        # Candidates are looked for below the threshold, because both the search and the estimate miss a little.
        self._index = MinHashLSH(threshold=SIMILARITY - 0.1, num_perm=_PERMUTATIONS)
        self._signatures: list[MinHash] = []

    def twin(self, text: str) -> bool:
        """Whether a file is almost the same as one kept before; if it is not, it is kept."""
        lines = sorted({zlib.crc32(line.encode("utf-8", "surrogatepass")) for line in map(str.strip, text.split("\n"))})
        if len(lines) < _FEWEST_LINES:
            return False
        signature = MinHash(num_perm=_PERMUTATIONS, hashfunc=_as_it_is)
        for start in range(0, len(lines), _BATCH):
            signature.update_batch(lines[start : start + _BATCH])
        if any(signature.jaccard(self._signatures[index]) >= SIMILARITY for index in self._index.query(signature)):
            return True
        self._index.insert(len(self._signatures), signature)
        self._signatures.append(signature)
        return False


def _as_it_is(value: int) -> int:
    return value
