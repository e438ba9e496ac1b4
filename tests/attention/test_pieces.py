"""The staircase is covered exactly: every visible pair once, no other pair."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.attention.mask_tiles import Shape, causal_pieces


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
