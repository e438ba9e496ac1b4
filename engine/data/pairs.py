"""Preference pairs: windows of two documents, the chosen and the rejected side of one row.

The store holds both sides of a pair one after the other as one file, and the border between them as its only place for
a cut. A pair's sides are computed apart, so each may be as long as the context.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engine.data.packing import Cut
from engine.data.windows import PackingFigures, Window, Windows

if TYPE_CHECKING:
    import numpy.typing as npt

    from engine.data.labels import LearntTokens
    from engine.data.store import TokenStore


@dataclass(frozen=True, eq=False)
class Pair(Window):
    """Both sides of a preference as documents, the chosen one first."""

    @functools.cached_property
    def chosen(self) -> Window:
        """The chosen side."""
        return self.part(0, self.starts[1])

    @functools.cached_property
    def rejected(self) -> Window:
        """The rejected side."""
        return self.part(self.starts[1], len(self))

    @property
    def divisor(self) -> float:
        """One: an update's loss is the mean over its pairs."""
        return 1.0

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256, in hex, of its tokens and of those that are predicted."""
        told = hashlib.sha256(repr(self.starts).encode())
        told.update(np.ascontiguousarray(self.ids, dtype="<i8").tobytes())
        told.update(np.packbits(self.predicted).tobytes())
        return told.hexdigest()


class PairWindows(Windows):
    """The pairs of one side of a store, held out or not.

    Args:
        stream: Token ids. Shape (tokens,).
        spans: First token, border and end of each pair in the stream. Shape (pairs, 3).
        learnt: Which tokens of the stream are predicted.
        context: Tokens of a side at most; longer pairs are left out.
    """

    def __init__(
        self,
        stream: npt.NDArray[np.uint16] | npt.NDArray[np.uint32],
        spans: npt.NDArray[np.int64],
        learnt: LearntTokens,
        context: int,
    ) -> None:
        self.context = context
        self._stream, self._all, self._predicted = stream, spans, learnt
        self._spans = spans[np.diff(spans, axis=1).max(axis=1, initial=0) <= context]
        self.token_count = int((self._spans[:, 2] - self._spans[:, 0]).sum())
        pairs = len(self._spans)
        self.figures = PackingFigures(self.token_count, pairs, 2 * pairs, 0, cuts=(0,) * len(Cut), waste=0.0)

    def __len__(self) -> int:
        return len(self._spans)

    def with_context(self, context: int) -> PairWindows:
        """The pairs whose sides fit into another context."""
        return PairWindows(self._stream, self._all, self._predicted, context)

    def __getitem__(self, index: int) -> Pair:
        """One pair."""
        if not 0 <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        start, border, stop = self._spans[index].tolist()
        return Pair(self._stream[start:stop].astype(np.int64), (0, border - start), self._predicted.among(start, stop))

    def places(self, index: int) -> npt.NDArray[np.int64]:
        """Position in the stream of each token of a pair. Shape (tokens,)."""
        start, _, stop = self._spans[index]
        return np.arange(start, stop, dtype=np.int64)

    @property
    def chosen(self) -> ChosenWindows:
        """The chosen sides alone."""
        return ChosenWindows(self._stream, self._all, self._predicted, self.context)


class ChosenWindows(PairWindows):
    """The chosen sides of the same pairs, to score a model as on any other text."""

    def __getitem__(self, index: int) -> Window:  # type: ignore[override]
        """One chosen side."""
        return super().__getitem__(index).chosen

    def with_context(self, context: int) -> ChosenWindows:
        """The chosen sides of the pairs that fit into another context."""
        return ChosenWindows(self._stream, self._all, self._predicted, context)


def pair_windows(store: TokenStore, held_out: int, context: int) -> tuple[PairWindows, PairWindows]:
    """Training and held-out pairs of a store whose last `held_out` files are held out."""
    spans, learnt = _spans(store), store.learnt
    assert learnt is not None
    count, border = len(spans) - held_out, int(store.offsets()[len(spans) - held_out])
    return (
        PairWindows(store.tokens[:border], spans[:count], learnt.of(0, border), context),
        PairWindows(store.tokens[border:], spans[count:] - border, learnt.of(border, len(store.tokens)), context),
    )


def longest_sides(store: TokenStore) -> npt.NDArray[np.int64]:
    """Tokens of the longer side of each pair. Shape (pairs,)."""
    longest: npt.NDArray[np.int64] = np.diff(_spans(store), axis=1).max(axis=1, initial=0)
    return longest


def _spans(store: TokenStore) -> npt.NDArray[np.int64]:
    offsets = store.offsets()
    return np.stack([offsets[:-1], np.asarray(store.borders, dtype=np.int64), offsets[1:]], axis=1)
