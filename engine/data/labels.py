"""Which tokens of a stream are predicted, and how much the loss of each counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

RUN = np.dtype([("start", "<i8"), ("weight", "<f8")])
"A run of tokens of one weight, as a store has it."
_AT_ONCE = 1 << 24
"Tokens whose bits are unpacked together."


class LearntTokens:
    """Which tokens of a stream are predicted, a bit each.

    Args:
        bits: As numpy.packbits makes them.
        start, stop: The part of them that counts.
    """

    def __init__(self, bits: npt.NDArray[np.uint8], start: int, stop: int) -> None:
        self._bits, self._start, self._stop = bits, start, stop

    def of(self, start: int, stop: int) -> LearntTokens:
        """Those of a part."""
        return LearntTokens(self._bits, self._start + start, self._start + stop)

    def among(self, start: int, stop: int) -> npt.NDArray[np.bool_]:
        """Whether each token of a range is predicted. Shape (tokens,)."""
        first, last = self._start + start, self._start + stop
        bits = np.unpackbits(self._bits[first // 8 : -(-last // 8)], count=last - first // 8 * 8)
        return bits[first % 8 :].astype(bool)

    def count(self) -> int:
        """How many are predicted."""
        length = self._stop - self._start
        parts = range(0, length, _AT_ONCE)
        return sum(int(np.count_nonzero(self.among(start, min(start + _AT_ONCE, length)))) for start in parts)


class TokenWeights:
    """Factors of the losses of a stream's tokens, in runs of equal ones.

    What they say of tokens that are not predicted means nothing.

    Args:
        runs: First token of each run, ascending, and its weight, as the store has them; 1 before the first.
        start, stop: The part of the stream that counts.
    """

    def __init__(self, runs: npt.NDArray[Any], start: int, stop: int) -> None:
        self._runs, self._start, self._stop = runs, start, stop

    def of(self, start: int, stop: int) -> TokenWeights:
        """Those of a part."""
        return TokenWeights(self._runs, self._start + start, self._start + stop)

    def among(self, start: int, stop: int) -> npt.NDArray[np.float64]:
        """The factor of each token of a range. Shape (tokens,)."""
        first, last = self._start + start, self._start + stop
        begin, end = np.searchsorted(self._runs["start"], (first, last))
        inside = self._runs[begin:end]
        before = float(self._runs["weight"][begin - 1]) if begin else 1.0
        lengths = np.diff([first, *inside["start"].tolist(), last])
        return np.repeat(np.array([before, *inside["weight"].tolist()]), lengths)
