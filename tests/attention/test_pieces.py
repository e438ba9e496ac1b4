"""The staircase is covered exactly: every visible pair once, no other pair."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.attention.mask_tiles import Shape, causal_pieces
from engine.attention.rule import AttentionRule


def _visible(n, window, document_starts):
    i, j = np.arange(n)[:, None], np.arange(n)[None]
    document = np.searchsorted(np.asarray(document_starts), np.arange(n), side="right")
    seen = (j <= i) & (document[:, None] == document[None])
    return seen if window is None else seen & (j > i - window)


@settings(max_examples=300)
@given(data=st.data())
def test_pieces_cover_what_is_visible_once(data):
    n = data.draw(st.integers(1, 60))
    tile = data.draw(st.integers(1, 25))
    key_block = data.draw(st.integers(1, 40))
    window = data.draw(st.none() | st.integers(1, 70))
    borders = sorted({0, *data.draw(st.lists(st.integers(0, n - 1), max_size=5))})
    count = np.zeros((n, n), int)
    for start in range(0, n, tile):
        stop = min(start + tile, n)
        for piece in causal_pieces(start, stop, key_block=key_block, window=window, document_starts=borders):
            rows, columns = piece.query_stop - piece.query_start, piece.key_stop - piece.key_start
            assert rows > 0
            assert columns > 0
            assert start <= piece.query_start < piece.query_stop <= stop
            assert piece.key_stop <= start or piece.key_start >= start
            if piece.shape is Shape.FULL:
                assert columns <= key_block
                part = np.ones((rows, columns), int)
            else:
                assert rows == columns
                part = np.tril(np.ones((rows, rows), int))
                part = part if piece.shape is Shape.CAUSAL else part.T
            count[piece.query_start : piece.query_stop, piece.key_start : piece.key_stop] += part
    assert (count == _visible(n, window, borders)).all()


@settings(max_examples=200)
@given(data=st.data())
def test_chunks_of_a_run_are_those_of_the_whole_sequence(data):
    """Each run lists only the parts that it meets; together they see what one mask shows."""
    n, tile = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 25))
    chunk, key_block = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 40))
    starts = sorted({0, *data.draw(st.lists(st.integers(0, n - 1), max_size=5))})
    number, place = 0, []
    for position in range(n):  # document, and chunk in it, of each position
        number += position in starts
        place.append((number, (position - starts[number - 1]) // chunk))
    rule, count = AttentionRule(scale=1.0, chunk=chunk), np.zeros((n, n), int)
    for start in range(0, n, tile):
        stop = min(start + tile, n)
        borders = rule.borders(starts, stop, start)
        assert len(borders) <= stop - start + 1
        for piece in causal_pieces(start, stop, key_block=key_block, document_starts=borders):
            for query in range(piece.query_start, piece.query_stop):
                seen = piece.key_stop if piece.shape is Shape.FULL else piece.key_start + query - piece.query_start + 1
                count[query, piece.key_start : seen] += 1
    expected = [[int(key <= query and place[key] == place[query]) for key in range(n)] for query in range(n)]
    assert (count == np.array(expected)).all()
