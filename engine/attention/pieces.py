"""Cuts causal attention of a run of queries into rectangles that any flash kernel can compute.

A query at position i sees the keys j of its own document with i - window < j <= i. Over a run of queries that
region is a staircase; every kernel knows just two shapes, a full rectangle and a causal triangle. This module
writes the staircase as a sum of those two and of the triangle's mirror image (`ANTICAUSAL`: a query sees the
keys from its own index on), which is a causal triangle once both sides are reversed. So sliding windows and
packed documents need no kernel of their own. Pure arithmetic: no tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise


class Shape(Enum):
    """Which keys of a piece a query of it sees; r and t count from the piece's own first query and key."""

    FULL = "every key"
    CAUSAL = "keys t <= r"
    ANTICAUSAL = "keys t >= r"


@dataclass(frozen=True)
class Piece:
    """Queries [query_start, query_stop) against keys [key_start, key_stop). Triangles are square."""

    query_start: int
    query_stop: int
    key_start: int
    key_stop: int
    shape: Shape


def causal_pieces(
    start: int,
    stop: int,
    *,
    key_block: int,
    window: int | None = None,
    document_starts: Sequence[int] = (0,),
) -> Iterator[Piece]:
    """Pieces that cover, each pair once, what the queries [start, stop) see.

    No piece crosses `start` on the key side, so each one reads keys either from this run or from earlier ones.
    Rectangles reach back in blocks aligned to multiples of `key_block`: few distinct shapes, so that kernels
    which plan per shape (cuDNN) plan rarely.

    Args:
        start, stop: Positions of the run of queries in the sequence.
        key_block: Most keys in a rectangle.
        window: Keys a query sees, itself included; None for all (a layer without a sliding window).
        document_starts: Ascending first positions of the packed documents, beginning with 0.
    """
    for first, last, document in _documents(start, stop, document_starts):
        span = last - first if window is None else window
        for a in range(first, last, span):
            b = min(a + span, last)
            yield Piece(a, b, a, b, Shape.CAUSAL)
            if window is None:
                yield from _rectangles(a, b, document, a, start, key_block)
            else:
                yield from _windowed(a, b, document, window, start, key_block)


def trailing_documents(pieces: Sequence[Piece]) -> tuple[list[Piece], list[int]]:
    """Splits off the whole documents at the end of a run, whose queries see nothing but their own triangle.

    Args:
        pieces: From `causal_pieces`, in its order.

    Returns:
        The pieces of the rows before; the documents' first positions and the last one's end, [] for no document.
    """
    first = len(pieces)
    while first and pieces[first - 1].shape is Shape.CAUSAL:  # what a triangle's queries see besides follows it
        first -= 1
    documents = pieces[first:]
    borders = [*(p.query_start for p in documents), documents[-1].query_stop] if documents else []
    return list(pieces[:first]), borders


def _documents(start: int, stop: int, document_starts: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(first, last, document start) of each part of [start, stop) that lies in one document."""
    borders = [*document_starts, stop]
    for document, following in pairwise(borders):
        first, last = max(start, document), min(stop, max(following, document))
        if first < last:
            yield first, last, document


def _windowed(a: int, b: int, document: int, window: int, split: int, key_block: int) -> Iterator[Piece]:
    """Keys before `a` that the queries [a, b) see through a window at least as long as b - a."""
    # Every query of the run sees the keys from the last one's window to a.
    yield from _rectangles(a, b, max(document, b - window), a, split, key_block)
    # Query a + r also sees the keys from a + r - window + 1: a mirrored triangle of side b - a - 1.
    edge_start, edge_stop = a - window + 1, b - window
    first_key = max(edge_start, document)
    if first_key >= edge_stop:
        return
    cut = first_key - edge_start  # rows up to here have lost their oldest keys to the document's start
    yield from _rectangles(a, a + cut, first_key, edge_stop, split, key_block)
    yield from _mirrored(a + cut, first_key, edge_stop - first_key, split)


def _mirrored(query: int, key: int, side: int, split: int) -> Iterator[Piece]:
    """ANTICAUSAL square from (query, key), cut where its keys cross `split`."""
    if key >= split or key + side <= split:
        yield Piece(query, query + side, key, key + side, Shape.ANTICAUSAL)
        return
    early = split - key
    yield Piece(query, query + early, key, split, Shape.ANTICAUSAL)
    yield Piece(query, query + early, split, key + side, Shape.FULL)
    yield Piece(query + early, query + side, split, key + side, Shape.ANTICAUSAL)


def _rectangles(a: int, b: int, first_key: int, last_key: int, split: int, key_block: int) -> Iterator[Piece]:
    """FULL pieces of the queries [a, b) against keys [first_key, last_key), cut at blocks and at `split`."""
    if a >= b:
        return
    key = first_key
    while key < last_key:
        end = min(last_key, (key // key_block + 1) * key_block)
        if key < split < end:
            end = split
        yield Piece(a, b, key, end, Shape.FULL)
        key = end
