"""Sequence parallel: loss and gradients of one process, for every way to cut a sequence, with labels and weights."""

from __future__ import annotations

import pytest

from engine.launch.rank_processes import run_processes
from tests.distributed import parity, two_ranks


@pytest.fixture(scope="module")
def of_two_ranks():
    """What each of two ranks found."""
    return run_processes(two_ranks.errors, 2)


def check_sequences(errors):
    cases = [(*case, where) for case in parity.CASES for where in ("in place", "copied")]
    for case, (loss, gradients, evaluated) in zip(cases, errors, strict=True):
        assert max(loss, evaluated) < 1e-5, case
        assert gradients < 1e-5, case


def test_two_ranks_with_parts_of_a_sequence_are_one(of_two_ranks):
    for found in of_two_ranks:
        check_sequences(found["sequence"])


@pytest.mark.slow
def test_four_ranks_with_parts_of_a_sequence_are_one():
    for errors in run_processes(parity.sequence_errors, 4):
        check_sequences(errors)


def test_labels_go_with_their_tokens(of_two_ranks):
    """Ranks with parts of a window, or with windows of their own, share the number of all labels."""
    for found in of_two_ranks:
        assert found["labels"].keys() == {"ring", "ulysses", "data"}
        for strategy, (loss, gradients) in found["labels"].items():
            assert loss < 1e-5, strategy
            assert gradients < 1e-5, strategy


def test_weights_go_with_their_tokens(of_two_ranks):
    for found in of_two_ranks:
        assert found["weights"].keys() == {"ring", "ulysses"}
        for strategy, errors in found["weights"].items():
            assert max(errors) < 1e-5, strategy


def test_heads_that_ranks_cannot_share_evenly_are_refused_in_one_line(of_two_ranks):
    """Families such as Laguna have other numbers of heads in some layers than their configuration's one number."""
    for found in of_two_ranks:
        assert found["heads"] == (
            "strategy ulysses cannot be used here: 3 query and 3 key heads of a layer do not divide by 2 ranks"
        )
