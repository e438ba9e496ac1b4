"""General code and text are scored piece by piece, and the pieces are there."""

from __future__ import annotations

import numpy as np
import pytest

from engine.evaluation.general import CODE, TEXT, general_rows, general_texts, tally_general
from engine.steps.whole_step import TokenScores
from engine.tokenization.encoder import demo_encoder


def test_both_kinds_have_enough_pieces_for_an_interval():
    pieces = list(general_texts())
    for kind in (CODE, TEXT):
        found = [piece for piece in pieces if piece.language == kind]
        assert len(found) >= 5
        assert all(len(piece.text) > 300 for piece in found)


def test_perplexity_is_that_of_the_losses():
    encoder = demo_encoder()
    seen = []

    def losses(value):
        def of(window):
            seen.append(len(window))
            targets = len(window) - 1
            return TokenScores(np.full(targets, value, np.float32), np.zeros(targets, np.int64))

        return of

    base = tally_general(losses(1.0), encoder, context=64, progress=lambda *_: None)
    tuned = tally_general(losses(1.5), encoder, context=64, progress=lambda *_: None)
    assert max(seen) <= 64
    rows = general_rows(base, tuned)
    assert [row.name for row in rows] == [CODE, TEXT]
    for row in rows:
        assert row.base == pytest.approx(np.e)
        assert row.tuned == pytest.approx(np.exp(1.5))
        assert row.change_interval.low > 0
