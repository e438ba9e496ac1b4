"""A stream of tokens cut into windows of the context's length."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

_SHORTEST = 2
"Tokens; a single token has nothing to predict."


class Windows:
    """Windows over a stream, in order, without overlap. The last one may be shorter.

    Attributes:
        token_count: Tokens in all windows: each token of the stream once, but a last window of a single token.
    """

    def __init__(self, stream: npt.NDArray[np.uint16] | npt.NDArray[np.uint32], context: int) -> None:
        """Takes the stream as it is, without a copy: it may be a memory map.

        Args:
            stream: Token ids. Shape (tokens,).
            context: Tokens a window, at least 2.

        Raises:
            ValueError: context below 2.
        """
        if context < _SHORTEST:
            raise ValueError(f"a window needs at least {_SHORTEST} tokens, not {context}")
        self.context = context
        self._whole = stream
        rest = len(stream) % context
        self._stream = stream[: len(stream) - rest] if rest < _SHORTEST else stream

    def __len__(self) -> int:
        return math.ceil(len(self._stream) / self.context)

    def with_context(self, context: int) -> Windows:
        """Windows of another length over the same tokens."""
        return Windows(self._whole, context)

    @property
    def token_count(self) -> int:
        """Tokens in all windows."""
        return len(self._stream)

    def __getitem__(self, index: int) -> npt.NDArray[np.int64]:
        """Token ids of one window. Shape (at most context,), int64."""
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        start = index * self.context
        return self._stream[start : start + self.context].astype(np.int64)

    def epoch_order(self, seed: int, epoch: int) -> npt.NDArray[np.int64]:
        """The order in which one epoch visits the windows. Shape (windows,)."""
        return epoch_order(len(self), seed, epoch)


def epoch_order(windows: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """A permutation of range(windows) that the seed and the epoch determine. Shape (windows,), int64."""
    # A bit generator with a published algorithm, and a shuffle by its raw output: numpy may change how a
    # Generator shuffles between versions, and a resumed run must go on in the same order.
    keys = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(windows)
    return np.argsort(np.asarray(keys, dtype=np.uint64), kind="stable").astype(np.int64)
