"""Shards a sequence over ranks, and lists the blocks of keys that each rank's queries see. Pure arithmetic.

In zigzag order rank r takes the r-th and the r-th last of 2R pieces. Every rank then has early tokens, which see few
keys, and late ones, which see many, so that causal attention is the same work for all in every turn of the ring.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from engine.attention.mask_tiles import Piece, Shape, causal_pieces

Order = Literal["zigzag", "contiguous"]


@dataclass(frozen=True)
class Segment:
    """Positions [start, stop) of the sequence, kept by a rank from its row `row` on."""

    start: int
    stop: int
    row: int


def segments(context: int, ranks: int, order: Order) -> list[list[Segment]]:
    """Lists each rank's segments in ascending order; lengths differ by at most one token a piece."""
    pieces = 2 * ranks if order == "zigzag" else ranks
    borders = [context * i // pieces for i in range(pieces + 1)]
    spans = list(pairwise(borders))
    kept = []
    for rank in range(ranks):
        own = [spans[rank], spans[pieces - 1 - rank]] if order == "zigzag" else [spans[rank]]
        found, row = [], 0
        for start, stop in own:
            if start < stop:
                found.append(Segment(start, stop, row))
                row += stop - start
        kept.append(found)
    return kept


def rows_of(kept: Sequence[Segment]) -> int:
    """Counts the tokens that a rank keeps."""
    return sum(segment.stop - segment.start for segment in kept)


@dataclass(frozen=True)
class Block:
    """Rows [query, query + queries) of a rank against rows [key, key + keys) of the same or another rank."""

    query: int
    queries: int
    key: int
    keys: int
    shape: Shape


def blocks(
    own: Sequence[Segment],
    owners: Sequence[Sequence[Segment]],
    *,
    tile: int,
    key_block: int,
    window: int | None,
    document_starts: Sequence[int],
) -> list[list[Block]]:
    """Lists, for each owner of keys, the blocks that a rank's queries see.

    Args:
        own: Segments that the rank keeps.
        owners: Segments that each rank keeps.
        tile: Most queries in a block.
        key_block: Most keys in a rectangle.
        window, document_starts: As in `engine.attention.mask_tiles.causal_pieces`.
    """
    found: list[list[Block]] = [[] for _ in owners]
    for segment in own:
        for start in range(segment.start, segment.stop, tile):
            stop = min(start + tile, segment.stop)
            pieces = causal_pieces(start, stop, key_block=key_block, window=window, document_starts=document_starts)
            for piece in pieces:
                for owner, kept in enumerate(owners):
                    for place in kept:
                        for part in _within(piece, place.start, place.stop):
                            found[owner].append(
                                Block(
                                    query=part.query_start - segment.start + segment.row,
                                    queries=part.query_stop - part.query_start,
                                    key=part.key_start - place.start + place.row,
                                    keys=part.key_stop - part.key_start,
                                    shape=part.shape,
                                )
                            )
    return found


def _within(piece: Piece, start: int, stop: int) -> Iterator[Piece]:
    """Yields the part of a piece whose keys lie in [start, stop)."""
    first, last = max(piece.key_start, start), min(piece.key_stop, stop)
    if first >= last:
        return
    if (first, last) == (piece.key_start, piece.key_stop):
        yield piece
    elif piece.shape is Shape.FULL:
        yield Piece(piece.query_start, piece.query_stop, first, last, Shape.FULL)
    elif piece.shape is Shape.ANTICAUSAL:
        yield from _anticausal(piece, first, last)
    else:
        # A triangle's keys are its own queries, which lie in one segment.
        raise AssertionError(f"{piece} crosses a segment's border")


def _anticausal(piece: Piece, first: int, last: int) -> Iterator[Piece]:
    """Yields the part of an ANTICAUSAL piece, where query r sees the keys t >= r, with keys in [first, last).

    Queries from `last` on see none of these keys.
    """
    a, b = first - piece.key_start, last - piece.key_start
    query = piece.query_start
    if a:
        yield Piece(query, query + a, first, last, Shape.FULL)
    yield Piece(query + a, query + b, first, last, Shape.ANTICAUSAL)
