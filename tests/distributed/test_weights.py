"""Weights of tokens go with them to the ranks that compute them."""

from __future__ import annotations

from engine.launch.rank_processes import run_processes
from tests.distributed import weights


def test_ranks_with_parts_of_a_weighted_sequence_are_one():
    for errors in run_processes(weights.weight_errors, 2):
        assert errors.keys() == {"ring", "ulysses"}
        for strategy, found in errors.items():
            assert max(found) < 1e-5, strategy
