"""Windows of tokens over a stream, for any context: the same tokens, cut and packed anew."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engine.data.mixture import mixed
from engine.data.packing import SHORTEST, Layout, Packed, pack

if TYPE_CHECKING:
    import numpy.typing as npt

    from engine.data.labels import LearntTokens, TokenWeights


@dataclass(frozen=True, eq=False)
class Window:
    """What one sequence of a step holds: one document or several, which do not see each other.

    Attributes:
        ids: Token ids. Shape (tokens,), int64.
        starts: First position of each document, or part of one, ascending from 0. Positions count from there.
        learnt: Whether each token is predicted; the first of a document never is. Shape (tokens,). None: all are.
        weights: Factor of each predicted token's loss, of any sign. Shape (tokens,). None: all are 1.
    """

    ids: npt.NDArray[np.int64]
    starts: tuple[int, ...] = (0,)
    learnt: npt.NDArray[np.bool_] | None = None
    weights: npt.NDArray[np.float64] | None = None

    def __len__(self) -> int:
        """Tokens."""
        return len(self.ids)

    @functools.cached_property
    def targets(self) -> int:
        """Tokens that are predicted: all but the first of each document, or those of them that are learnt."""
        return int(np.count_nonzero(self.predicted)) if self.learnt is not None else len(self.ids) - len(self.starts)

    @property
    def divisor(self) -> float:
        """What an update's loss is divided by for this window: its targets, or the sum of their weights."""
        return float(self.targets if self.weights is None else self.weights[self.predicted].sum())

    @property
    def predicted(self) -> npt.NDArray[np.bool_]:
        """Whether each token is predicted. Shape (tokens,)."""
        found = np.ones(len(self.ids), dtype=bool) if self.learnt is None else self.learnt.copy()
        found[[start for start in self.starts if start < len(found)]] = False
        return found

    def positions(self) -> npt.NDArray[np.int64]:
        """Position of each token in its document. Shape (tokens,)."""
        lengths = np.diff([*self.starts, len(self.ids)])
        places: npt.NDArray[np.int64] = np.arange(len(self.ids)) - np.repeat(self.starts, lengths)
        return places

    def part(self, start: int, stop: int) -> Window:
        """The window's tokens [start, stop), at least one; a document that began before begins at 0."""
        starts = sorted({max(first - start, 0) for first in self.starts if first < stop})
        return Window(
            self.ids[start:stop],
            tuple(starts),
            None if self.learnt is None else self.learnt[start:stop],
            None if self.weights is None else self.weights[start:stop],
        )

    def first(self, tokens: int) -> Window:
        """The window up to so many tokens."""
        learnt = None if self.learnt is None else self.learnt[:tokens]
        weights = None if self.weights is None else self.weights[:tokens]
        starts = tuple(start for start in self.starts if start < max(tokens, 1))
        return Window(self.ids[:tokens], starts, learnt, weights)

    def first_targets(self, targets: int) -> Window:
        """The window up to so many targets."""
        if self.learnt is not None:
            places = np.flatnonzero(self.predicted)
            return self if targets >= len(places) else self.first(int(places[targets - 1]) + 1 if targets > 0 else 0)
        # A document that starts after k targets in d documents starts at position k + d.
        before = sum(start - documents < targets for documents, start in enumerate(self.starts))
        return self.first(targets + before)


def joined(windows: Sequence[Window]) -> Window:
    """Windows one after the other as one, whose documents do not see each other."""
    if len(windows) == 1:
        return windows[0]
    ends = np.cumsum([0, *(len(window) for window in windows)])
    starts = [int(end) + start for end, window in zip(ends, windows, strict=False) for start in window.starts]
    learnt = None
    if any(window.learnt is not None for window in windows):
        learnt = np.concatenate([window.predicted for window in windows])
    weights = None
    if any(window.weights is not None for window in windows):
        weights = np.concatenate([np.ones(len(w)) if w.weights is None else w.weights for w in windows])
    return Window(np.concatenate([window.ids for window in windows]), tuple(starts), learnt, weights)


@dataclass(frozen=True)
class PackingFigures:
    """How well the windows of one context are filled."""

    tokens: int
    windows: int
    documents: int
    "Documents, or parts of them, in all windows together."
    cut_inside: int
    "Parts that end within a definition."
    cuts: tuple[int, ...]
    "Parts that end so, by engine.data.packing.Cut."
    waste: float
    "Share of the places of all windows but the emptiest that stay empty."

    def padded(self, context: int) -> float:
        """The share that would stay empty if each part had a window of its own."""
        return 1 - self.tokens / (self.documents * context) if self.documents else 0.0


class Windows:
    """Windows over a stream. Each token is in one of them; one without anything to predict is left out.

    Attributes:
        context: Tokens in a window, at most.
        token_count: Tokens in all windows.
        figures: How well they are filled.
        shares: Of the tokens of a run, of each source; None where every token is seen once in a pass.
    """

    shares: tuple[float, ...] | None = None

    def __init__(
        self,
        stream: npt.NDArray[np.uint16] | npt.NDArray[np.uint32],
        context: int,
        layout: Layout | None = None,
        *,
        together: bool = True,
        learnt: LearntTokens | None = None,
        weights: TokenWeights | None = None,
        drop_longer: bool = False,
        shares: Sequence[float] | None = None,
    ) -> None:
        """Takes the stream as it is, without a copy: it may be a memory map.

        Args:
            stream: Token ids. Shape (tokens,).
            context: Tokens a window, at least 2.
            layout: What begins where in the stream; None for one document of which nothing is known.
            together: Whether several documents may share a window (packing).
            learnt: Which tokens of the stream are predicted. None: all are.
            weights: Factors of the losses of the predicted ones. None: all are 1.
            drop_longer: Whether conversations longer than the context are left out; else they are cut.
            shares: Of the tokens of a run, of each of the layout's sources. None: every token once in a pass.

        Raises:
            ValueError: context below 2.
        """
        if context < SHORTEST:
            raise ValueError(f"a window needs at least {SHORTEST} tokens, not {context}")
        self.context = context
        self._stream = stream
        nothing = np.empty(0, dtype=np.int64)
        begin = np.zeros(min(1, len(stream)), dtype=np.int64)
        self._layout = layout or Layout(documents=begin, files=begin, definitions=nothing)
        self._together, self._learnt, self._weights, self._drop_longer = together, learnt, weights, drop_longer
        packed = pack(stream, context, self._layout, together=together, drop_longer=drop_longer)
        self._packed, self._lengths = _without_empty(packed, learnt)
        self.shares = None if shares is None else tuple(shares)
        self._upcoming: dict[int, tuple[Iterator[int], list[int]]] = {}
        "By seed: the windows of a run in their order, as far as they were asked for."
        self.token_count = int(self._lengths.sum())
        places = (len(self._lengths) - 1) * context
        self.figures = PackingFigures(
            tokens=self.token_count,
            windows=len(self._lengths),
            documents=len(self._packed.starts),
            cut_inside=packed.cut_inside,
            cuts=packed.cuts,
            waste=max(0.0, 1 - (self.token_count - int(self._lengths.min())) / places) if places > 0 else 0.0,
        )

    def __len__(self) -> int:
        return len(self._lengths)

    def with_context(self, context: int) -> Windows:
        """Windows of another length over the same tokens."""
        return Windows(
            self._stream,
            context,
            self._layout,
            together=self._together,
            learnt=self._learnt,
            weights=self._weights,
            drop_longer=self._drop_longer,
            shares=self.shares,
        )

    def __getitem__(self, index: int) -> Window:
        """One window."""
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        first, last = self._packed.first_part[index : index + 2]
        starts, stops = self._packed.starts[first:last], self._packed.stops[first:last]
        ids = np.concatenate([self._stream[start:stop] for start, stop in zip(starts, stops, strict=True)])
        places = np.cumsum([0, *(stops - starts)[:-1]])
        ranges = list(zip(starts.tolist(), stops.tolist(), strict=True))
        learnt = weights = None
        if self._learnt is not None:
            learnt = np.concatenate([self._learnt.among(start, stop) for start, stop in ranges])
        if self._weights is not None:
            weights = np.concatenate([self._weights.among(start, stop) for start, stop in ranges])
        return Window(ids.astype(np.int64), tuple(places.tolist()), learnt, weights)

    def places(self, index: int) -> npt.NDArray[np.int64]:
        """Position in the stream of each token of a window. Shape (tokens,)."""
        first, last = self._packed.first_part[index : index + 2]
        ranges = zip(self._packed.starts[first:last], self._packed.stops[first:last], strict=True)
        return np.concatenate([np.arange(start, stop, dtype=np.int64) for start, stop in ranges])

    @property
    def stream_tokens(self) -> int:
        """Tokens of the stream, also those that are in no window."""
        return len(self._stream)

    def length(self, index: int) -> int:
        """Tokens of a window, without reading it."""
        return int(self._lengths[index])

    def spans(self, index: int) -> Iterator[tuple[int, int]]:
        """Yields the ranges [start, stop) of the stream that a window holds."""
        first, last = self._packed.first_part[index : index + 2]
        for start, stop in zip(self._packed.starts[first:last], self._packed.stops[first:last], strict=True):
            yield int(start), int(stop)

    def __iter__(self) -> Iterator[Window]:
        return (self[index] for index in range(len(self)))

    def epoch_order(self, seed: int, epoch: int) -> npt.NDArray[np.int64]:
        """The order in which one epoch visits the windows. Shape (visits,).

        It visits each once; with shares some several times and others not at all.
        """
        if self.shares is None:
            return epoch_order(len(self), seed, epoch)
        if seed not in self._upcoming:
            endless = mixed(
                self.shares, self.by_source, self._lengths, lambda count, number: epoch_order(count, seed, number)
            )
            self._upcoming[seed] = endless, []
        endless, order = self._upcoming[seed]
        count = self._windows_a_pass
        order += itertools.islice(endless, max(0, (epoch + 1) * count - len(order)))
        return np.array(order[epoch * count : (epoch + 1) * count], dtype=np.int64)

    @functools.cached_property
    def by_source(self) -> list[npt.NDArray[np.int64]]:
        """Numbers of the windows of each source; of all of them where there are no sources."""
        if self.shares is None or self._packed.sources is None:
            return [np.arange(len(self), dtype=np.int64)]
        sources = self._packed.sources
        return [np.flatnonzero(sources == number).astype(np.int64) for number in range(len(self.shares))]

    def source_tokens(self) -> dict[int, int]:
        """Tokens of each source in the windows."""
        return {number: int(self._lengths[own].sum()) for number, own in enumerate(self.by_source)}

    @property
    def _windows_a_pass(self) -> int:
        """Windows that hold as many tokens, by shares, as all windows together."""
        assert self.shares is not None
        pairs = zip(self.shares, self.by_source, strict=True)
        having = [(share, self._lengths[own]) for share, own in pairs if len(own)]
        in_all = sum(share for share, _ in having)
        windows = sum(share / in_all * self.token_count / float(lengths.mean()) for share, lengths in having)
        return max(1, round(windows))


def _without_empty(packed: Packed, learnt: LearntTokens | None) -> tuple[Packed, npt.NDArray[np.int64]]:
    """The windows that have something to predict, and the tokens of each. A last one of a single token has not."""
    lengths = packed.stops - packed.starts
    parts = np.diff(packed.first_part)
    owners = np.repeat(np.arange(len(parts)), parts)
    tokens = np.bincount(owners, lengths, minlength=len(parts)).astype(np.int64)
    useful = tokens > parts
    if learnt is not None:
        # Nor has a part of a conversation in which a tool alone speaks.
        ranges = zip(packed.starts.tolist(), packed.stops.tolist(), strict=True)
        targets = [np.count_nonzero(learnt.among(start + 1, max(stop, start + 1))) for start, stop in ranges]
        useful &= np.bincount(owners, targets, minlength=len(parts)) > 0
    if useful.all():
        return packed, tokens
    kept = useful[owners]
    first_part = np.cumsum([0, *parts[useful]], dtype=np.int64)
    sources = None if packed.sources is None else packed.sources[useful]
    found = Packed(packed.starts[kept], packed.stops[kept], first_part, packed.cut_inside, packed.cuts, sources)
    return found, tokens[useful]


def epoch_order(windows: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """A permutation of range(windows) that the seed and the epoch determine. Shape (windows,), int64."""
    # A bit generator with a published algorithm, and a shuffle by its raw output: numpy may change how a
    # Generator shuffles between versions, and a resumed run must go on in the same order.
    keys = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(windows)
    return np.argsort(np.asarray(keys, dtype=np.uint64), kind="stable").astype(np.int64)
