"""Splits the causal attention mask of a run of queries into tiles that any flash kernel can compute.

A query at position i sees the keys j of its own document with i - window < j <= i. Over a run of queries that
region is a staircase, but every kernel supports just two shapes, a full rectangle and a causal triangle. This module
writes the staircase as a sum of those two and of the triangle's mirror image (`ANTICAUSAL`: a query sees the
keys from its own index on), which is a causal triangle once both sides are reversed. So sliding windows and
packed documents need no kernel of their own. This module is pure arithmetic, without tensors.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum


class Shape(Enum):
    """Mask of a piece, by query r and key t, counted from the piece's own first query and key."""

    FULL = "every key"
    CAUSAL = "keys t <= r"
    ANTICAUSAL = "keys t >= r"


@dataclass(frozen=True)
class Piece:
    """One mask tile, queries [query_start, query_stop) against keys [key_start, key_stop). Triangles are square."""

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
    """Yields pieces that cover each visible pair of a query in [start, stop) and a key exactly once.

    No piece crosses `start` on the key side, so each one reads keys either from this run or from earlier ones. Earlier
    keys of a piece lie within one block, aligned to multiples of `key_block`. So there are few distinct shapes, kernels
    that plan per shape (cuDNN) plan rarely, and a page of `key_block` keys holds all keys of a piece. Several pieces
    may read the same keys; most often blocks come in ascending order.

    Args:
        start, stop: Positions of the run of queries in the sequence.
        key_block: Most keys in a rectangle, and in any piece that reads earlier keys.
        window: Keys that a query sees, itself included; None for all (a layer without a sliding window).
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
    """Splits off the whole documents at the end of a run, whose queries see only their own triangle.

    Args:
        pieces: From `causal_pieces`, in its order.

    Returns:
        The pieces of the rows before, and the documents' first positions with the last one's end; [] for no document.
    """
    first = len(pieces)
    while first and pieces[first - 1].shape is Shape.CAUSAL:  # other pieces of a triangle's queries follow it
        first -= 1
    documents = pieces[first:]
    borders = [*(p.query_start for p in documents), documents[-1].query_stop] if documents else []
    return list(pieces[:first]), borders


def _documents(start: int, stop: int, document_starts: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Yields (first, last, document start) of each part of [start, stop) that lies in one document."""
    number = bisect_right(document_starts, start) - 1  # one bisection, as there are tens of thousands of documents
    first = start
    while first < stop:
        following = document_starts[number + 1] if number + 1 < len(document_starts) else stop
        last = min(stop, following)
        if first < last:
            yield first, last, document_starts[number]
        first, number = max(first, last), number + 1


def _windowed(a: int, b: int, document: int, window: int, split: int, key_block: int) -> Iterator[Piece]:
    """Yields the pieces of keys before `a` that the queries [a, b) see through a window of at least b - a."""
    # Query a + r sees the keys from a + r - window + 1. Up to the last query's first key this is a mirrored triangle of
    # side b - a - 1.
    edge_start, edge_stop = a - window + 1, b - window
    first_key = max(edge_start, document)
    if first_key < edge_stop:
        cut = first_key - edge_start  # in rows up to here the document's start cuts off the oldest keys
        yield from _rectangles(a, a + cut, first_key, edge_stop, split, key_block)
        yield from _mirrored(a + cut, first_key, edge_stop, split, key_block)
    # From edge_stop on, every query of the run sees all keys up to a.
    yield from _rectangles(a, b, max(document, edge_stop), a, split, key_block)


def _mirrored(query: int, key: int, last_key: int, split: int, key_block: int) -> Iterator[Piece]:
    """Splits the ANTICAUSAL square from (query, key) at `split` and, before it, at block boundaries."""
    while key < last_key:
        end = _end_of_block(key, last_key, split, key_block) if key < split else last_key
        after = query + end - key
        yield Piece(query, after, key, end, Shape.ANTICAUSAL)
        yield from _rectangles(query, after, end, last_key, split, key_block)
        query, key = after, end


def _rectangles(a: int, b: int, first_key: int, last_key: int, split: int, key_block: int) -> Iterator[Piece]:
    """Yields FULL pieces of queries [a, b) against keys [first_key, last_key), split at blocks and at `split`."""
    if a >= b:
        return
    key = first_key
    while key < last_key:
        end = _end_of_block(key, last_key, split, key_block)
        yield Piece(a, b, key, end, Shape.FULL)
        key = end


def _end_of_block(key: int, last_key: int, split: int, key_block: int) -> int:
    """Returns the end of a piece that begins at `key`, which is `last_key` or a boundary before it."""
    end = min(last_key, (key // key_block + 1) * key_block)
    return split if key < split < end else end
