"""Sequence parallel: loss and gradients of one process, for every way to cut a sequence."""

from __future__ import annotations

import pytest

from engine.launch.rank_processes import run_processes
from tests.distributed import labels, parity


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_with_parts_of_a_sequence_are_one(ranks):
    for errors in run_processes(parity.sequence_errors, ranks):
        cases = [(*case, where) for case in parity.CASES for where in ("in place", "copied")]
        for case, (loss, gradients, evaluated) in zip(cases, errors, strict=True):
            assert max(loss, evaluated) < 1e-5, case
            assert gradients < 1e-5, case


def test_labels_go_with_their_tokens():
    """Ranks with parts of a window, or with windows of their own, share the number of all labels."""
    for errors in run_processes(labels.label_errors, 2):
        assert errors.keys() == {"ring", "ulysses", "data"}
        for strategy, (loss, gradients) in errors.items():
            assert loss < 1e-5, strategy
            assert gradients < 1e-5, strategy
