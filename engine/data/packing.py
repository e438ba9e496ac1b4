"""Cuts documents to the context's length at good places, and packs several into a window, with next to nothing empty.

A window is filled with documents in their order. Where a document does not fit, it is cut before a file, else before
a definition, else after a statement, else after a line, and what then stays empty is filled with short documents, the
best fit first (Krell et al., arXiv 2107.02027; Ding et al., arXiv 2404.10830). Pure arithmetic on positions; the same
every time.
"""

from __future__ import annotations

import bisect
from array import array
from collections import deque
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

SHORTEST = 2
"Tokens; a single token has nothing to predict."
TOLERANCE = 64
"1/64 of a window's places may stay empty, on average, for the sake of a better cut."
_FILLER = 8
"Documents of at most 1/8 of the context wait until they fill a rest."

_LOOKED_BACK = 512
"Tokens over which brackets are counted before a cut: more than most statements have."


@dataclass(frozen=True)
class Layout:
    """Where things begin in a stream of tokens. All positions count from the stream's start, ascending."""

    documents: npt.NDArray[np.int64]
    "First token of each document: what may attend to itself only. The first is 0."
    files: npt.NDArray[np.int64]
    "First token of each file; the first of each document among them."
    definitions: npt.NDArray[np.int64]
    "First token of each function, class and the like that is worth a cut."
    newlines: npt.NDArray[np.uint8] | None = None
    "Line ends in the text of each token id. None: lines are not known."
    depths: npt.NDArray[np.int8] | None = None
    """Brackets that the text of each token id opens less those that it closes: round and square ones, then curly ones.
    Shape (2, vocabulary). None: statements are not known."""
    whole: npt.NDArray[np.bool_] | None = None
    """Whether each document is a conversation, which is cut only where it is longer than the context. Shape
    (documents,). None: no document is."""
    sources: npt.NDArray[np.int64] | None = None
    "Number of the source of each document; no window holds several. Shape (documents,). None: windows may."

    def of(self, start: int, stop: int) -> Layout:
        """The layout of a part of the stream, which begins and ends with documents."""

        def within(positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
            first, last = np.searchsorted(positions, (start, stop))
            part: npt.NDArray[np.int64] = positions[first:last]
            return part - start if start else part  # what is a memory map stays one where it can

        documents, files, definitions = map(within, (self.documents, self.files, self.definitions))
        first, last = np.searchsorted(self.documents, (start, stop))
        whole = None if self.whole is None else self.whole[first:last]
        sources = None if self.sources is None else self.sources[first:last]
        return Layout(documents, files, definitions, self.newlines, self.depths, whole, sources)


class Cut(IntEnum):
    """What a part of a document ends before."""

    DOCUMENT = 0
    FILE = 1
    DEFINITION = 2
    STATEMENT = 3
    LINE = 4
    TOKEN = 5


@dataclass(frozen=True)
class Packed:
    """Windows as ranges of tokens.

    Attributes:
        starts, stops: Range of each part of a document, in the order of the windows. Shape (parts,).
        first_part: Index of each window's first part, and at the end the number of parts. Shape (windows + 1,).
        cut_inside: Parts that end within a definition.
        cuts: Parts that end so, by Cut.
        sources: Source of each window, where the layout has sources. Shape (windows,).
    """

    starts: npt.NDArray[np.int64]
    stops: npt.NDArray[np.int64]
    first_part: npt.NDArray[np.int64]
    cut_inside: int
    cuts: tuple[int, ...] = (0,) * len(Cut)
    sources: npt.NDArray[np.int64] | None = None


def pack(
    tokens: npt.NDArray[Any], context: int, layout: Layout, *, together: bool, drop_longer: bool = False
) -> Packed:
    """Every token of the stream once, in windows of at most `context` tokens.

    Args:
        tokens: The stream. Shape (tokens,). Read near cuts only.
        context: Tokens a window, at least SHORTEST.
        layout: Of the stream.
        together: Whether several documents may share a window.
        drop_longer: Whether conversations longer than the context are left out; else they are cut.
    """
    ends = np.append(layout.documents[1:], len(tokens))[: len(layout.documents)]
    whole = np.zeros(len(ends), dtype=bool) if layout.whole is None else layout.whole
    own = np.zeros(len(ends), dtype=np.int64) if layout.sources is None else layout.sources
    spans: dict[int, list[tuple[int, int, bool]]] = {}
    for start, end, uncut, source in zip(layout.documents, ends, whole, own, strict=True):
        if start < end and not (drop_longer and uncut and end - start > context):
            spans.setdefault(int(source), []).append((int(start), int(end), bool(uncut)))
    found = [_pack_spans(spans[source], tokens, context, layout, together=together) for source in sorted(spans)]
    if layout.sources is None and found:
        return found[0]
    nothing = np.empty(0, dtype=np.int64)
    counts = [len(packed.first_part) - 1 for packed in found]
    return Packed(
        starts=np.concatenate([nothing, *(packed.starts for packed in found)]),
        stops=np.concatenate([nothing, *(packed.stops for packed in found)]),
        first_part=np.cumsum(np.concatenate([[0], *(np.diff(packed.first_part) for packed in found)]), dtype=np.int64),
        cut_inside=sum(packed.cut_inside for packed in found),
        cuts=tuple(sum(packed.cuts[cut] for packed in found) for cut in Cut),
        sources=None if layout.sources is None else np.repeat(np.array(sorted(spans), dtype=np.int64), counts),
    )


def _pack_spans(
    spans: list[tuple[int, int, bool]], tokens: npt.NDArray[Any], context: int, layout: Layout, *, together: bool
) -> Packed:
    """Packs documents, each with its first token, its end, and whether it is a conversation."""
    packer = _Packer(_Cutter(tokens, context, layout), context, together=together)
    several = together and len(spans) > 1
    short = [end - start <= (context if uncut else context // _FILLER) and several for start, end, uncut in spans]
    for (start, end, _), waits in zip(spans, short, strict=True):
        if waits:
            packer.set_aside(start, end)
    for (start, end, uncut), waits in zip(spans, short, strict=True):
        if not waits:
            packer.lay(start, end, conversation=uncut)
    packer.finish()
    parts = np.array(packer.parts, dtype=np.int64).reshape(-1, 2)
    first_part = np.zeros(len(packer.counts) + 1, dtype=np.int64)
    np.cumsum(np.array(packer.counts, dtype=np.int64), out=first_part[1:])
    return Packed(
        starts=np.ascontiguousarray(parts[:, 0]),
        stops=np.ascontiguousarray(parts[:, 1]),
        first_part=first_part,
        cut_inside=sum(packer.cuts[Cut.STATEMENT :]),
        cuts=tuple(packer.cuts),
    )


class _Cutter:
    """Finds where a document that does not fit is best cut."""

    def __init__(self, tokens: npt.NDArray[Any], context: int, layout: Layout) -> None:
        self._tokens, self._layout = tokens, layout
        self.tolerance = max(1, context // TOLERANCE)

    def cut(self, start: int, limit: int, end: int, spare: int) -> tuple[int, Cut]:
        """The end of the part of [start, end) that begins at `start`, at most `limit`.

        Args:
            start, limit, end: Positions; `limit` is below `end`.
            spare: Places that may stay empty for the sake of a file's or definition's border.
        """
        limit = min(limit, end - SHORTEST)  # the rest must have something to predict
        lowest = max(start + SHORTEST, limit - spare)
        for borders, cut in ((self._layout.files, Cut.FILE), (self._layout.definitions, Cut.DEFINITION)):
            border = int(borders[index]) if (index := int(np.searchsorted(borders, limit, "right")) - 1) >= 0 else 0
            if border >= lowest:
                return border, cut
        lowest = max(start + SHORTEST, limit - self.tolerance)
        if self._layout.newlines is not None and lowest < limit:
            ends_line = self._layout.newlines[self._tokens[lowest - 1 : limit]]
            found = np.flatnonzero(ends_line)
            if len(found):
                best, cut = self._statement(start, lowest - 1, limit, found)
                return lowest + best, cut
        return max(limit, start + 1), Cut.TOKEN

    def turn(self, start: int, limit: int) -> int:
        """The last border behind an answer that a part of a conversation may end at; 0 where there is none."""
        turns = self._layout.definitions
        index = int(np.searchsorted(turns, limit, "right")) - 1
        return int(turns[index]) if index >= 0 and turns[index] >= start + SHORTEST else 0

    def _statement(self, start: int, first: int, limit: int, lines: npt.NDArray[np.intp]) -> tuple[int, Cut]:
        """The line end, counted from `first`, at which fewest brackets are open, and whether a statement ends there.

        Args:
            start: Of the part; brackets are counted from there, or from _LOOKED_BACK tokens before.
            first, limit: Where the line ends are looked for.
            lines: Places of the line ends, counted from `first`.
        """
        if self._layout.depths is None:
            return int(lines[-1]), Cut.LINE
        start = max(start, min(first, limit - _LOOKED_BACK))
        whole = np.cumsum(self._layout.depths[:, self._tokens[start:limit]], axis=1, dtype=np.int64)
        open_ = whole[:, first - start :]
        inner, outer = open_[:, lines]
        least = inner.min()
        # A block's end is better than a line within it; of several that are alike the last one.
        best = lines[inner == least][np.flatnonzero(outer[inner == least] == outer[inner == least].min())[-1]]
        return int(best), Cut.STATEMENT if least <= min(0, int(whole[0].min())) else Cut.LINE


class _ByLength:
    """Numbers, each with a length; those of one length come out in the order in which they went in."""

    def __init__(self) -> None:
        self._waiting: dict[int, deque[int]] = {}
        self._lengths: list[int] = []

    def __bool__(self) -> bool:
        return bool(self._lengths)

    def add(self, length: int, number: int) -> None:
        if length not in self._waiting:
            self._waiting[length] = deque()
            bisect.insort(self._lengths, length)
        self._waiting[length].append(number)

    def take_longest(self, limit: int) -> tuple[int, int] | None:
        """Length and number of the longest of at most `limit`."""
        return self._take(bisect.bisect_right(self._lengths, limit) - 1)

    def take_shortest(self, least: int) -> tuple[int, int] | None:
        """Length and number of the shortest of at least `least`."""
        return self._take(bisect.bisect_left(self._lengths, least))

    def _take(self, index: int) -> tuple[int, int] | None:
        if not 0 <= index < len(self._lengths):
            return None
        length = self._lengths[index]
        waiting = self._waiting[length]
        number = waiting.popleft()
        if not waiting:
            del self._waiting[length], self._lengths[index]
        return length, number


class _Packer:
    """Windows in the making, and those made.

    Attributes:
        parts: Start and stop of each part of the windows made, one after the other.
        counts: Parts of each of these windows.
        cuts: Parts that end so, by Cut.
    """

    def __init__(self, cutter: _Cutter, context: int, *, together: bool) -> None:
        self._cutter, self._context, self._together = cutter, context, together
        self._short = _ByLength()  # documents that wait to fill a rest, by their start
        # Not lists of pairs: a large repository has a million windows.
        self.parts, self.counts = array("q"), array("q")
        self._present: list[tuple[int, int]] = []
        self._room = context
        self._saved = 0
        "Places that could have stayed empty and did not: to be spent on better cuts."
        self.cuts = [0] * len(Cut)

    def set_aside(self, start: int, end: int) -> None:
        """A short document, which may fill a rest anywhere."""
        self._short.add(end - start, start)

    def lay(self, start: int, end: int, *, conversation: bool = False) -> None:
        """Adds a document to the present window, and to as many more as it needs.

        A conversation is cut behind an answer, whatever stays empty: the first label of a part is lost, and a question
        whose answer stands in another window teaches nothing.
        """
        while start < end:
            if self._present and (not self._together or self._room < max(SHORTEST, self._cutter.tolerance)):
                self._close()
            stop = end
            if end - start > self._room:
                spare = self._spare()
                turn = self._cutter.turn(start, min(start + self._room, end - SHORTEST)) if conversation else 0
                if self._present and (self._room <= spare or (conversation and not turn)):
                    self._close()
                    continue
                if turn:
                    stop, cut = turn, Cut.DEFINITION
                else:
                    stop, cut = self._cutter.cut(start, start + self._room, end, spare)
                self.cuts[cut] += 1
            self._present.append((start, stop))
            self._room -= stop - start
            if stop < end:
                self._close()
            start = stop

    def _spare(self) -> int:
        """Places of the present window that may stay empty, or that short documents will fill."""
        generous = self._context // _FILLER
        if self._short and self._saved >= 0:
            return max(self._cutter.tolerance, generous)
        return max(self._cutter.tolerance, min(self._saved, generous))

    def _close(self) -> None:
        self._fill()
        self._made(self._present)
        self._saved += self._cutter.tolerance - self._room
        self._present, self._room = [], self._context

    def _fill(self) -> None:
        while (found := self._short.take_longest(self._room)) is not None:
            length, start = found
            self._present.append((start, start + length))
            self._room -= length

    def _made(self, window: list[tuple[int, int]]) -> None:
        for part in window:
            self.parts.extend(part)
        self.counts.append(len(window))

    def finish(self) -> None:
        """Makes the last windows: after those laid in order, those of short documents that filled no rest."""
        if self._present:
            self._fill()
            self._made(self._present)
        for window in self._best_fit():
            self._made(window)

    def _best_fit(self) -> list[list[tuple[int, int]]]:
        """The longest document that is left goes into the fullest window that still takes it, and so on."""
        rooms = _ByLength()
        windows: list[list[tuple[int, int]]] = []
        while (found := self._short.take_longest(self._context)) is not None:
            length, start = found
            room, window = rooms.take_shortest(length) or (self._context, len(windows))
            if window == len(windows):
                windows.append([])
            windows[window].append((start, start + length))
            rooms.add(room - length, window)
        return windows
