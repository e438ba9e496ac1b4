"""PowerSGD over two processes against Algorithm 1 of arXiv 1905.13727, written down here in numpy and fp64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.distributed.powersgd import PowerSgd, orthonormal_columns
from engine.distributed.torch_process_group import TorchProcessGroup
from engine.launch.rank_processes import run_processes

SHAPES = ((12, 40), (40, 12), (12, 40), (7,), (3, 3), (30, 20, 2), (40, 12))
PACKED = (0, 1, 2, 5, 6)
UPDATES = 4


def draw(kind, rank, update):
    """A rank's gradients of an update."""
    generator = np.random.default_rng([rank, update])
    found = [generator.standard_normal(shape) for shape in SHAPES]
    if kind == "of rank one":
        for index in PACKED:
            rows, columns = SHAPES[index][0], int(np.prod(SHAPES[index][1:]))
            left = np.random.default_rng([index, update]).standard_normal((rows, 1))  # alike in both ranks
            found[index] = (left @ generator.standard_normal((1, columns))).reshape(SHAPES[index])
    if kind == "nothing at first" and update < 2:
        found = [np.zeros(shape) for shape in SHAPES]
    return found


CASES = (("any", 1), ("any", 3), ("of rank one", 3), ("nothing at first", 3))


def in_a_rank(rank, count):
    """For every case what each update's gradients become, and the bytes that were sent."""
    del count
    group = TorchProcessGroup(torch.device("cpu"), 60.0)
    found = {}
    for kind, columns in CASES:
        add_up = PowerSgd(group, columns, whole_updates=0)
        group.sent_bytes, results = 0, []
        for update in range(UPDATES):
            gradients = [torch.tensor(one) for one in draw(kind, rank, update)]
            add_up(gradients)
            results.append([one.numpy() for one in gradients])
        found[kind, columns] = results, group.sent_bytes
    return found


@pytest.fixture(scope="module")
def ranks():
    """Both ranks' results: one start of two processes for all cases."""
    return run_processes(in_a_rank, 2)


def expected(kind, columns):
    """The same by the paper's algorithm, a matrix at a time."""
    bases = {
        i: torch.randn((int(np.prod(SHAPES[i][1:])), columns), generator=torch.Generator().manual_seed(i))
        .double()
        .numpy()
        for i in PACKED
    }
    unsent = {(rank, i): 0.0 for rank in (0, 1) for i in PACKED}
    results = []
    for update in range(UPDATES):
        own = [draw(kind, rank, update) for rank in (0, 1)]
        sums = [a + b for a, b in zip(*own, strict=True)]
        for i in PACKED:
            matrices = [own[rank][i].reshape(SHAPES[i][0], -1) + unsent[rank, i] for rank in (0, 1)]
            q, _ = np.linalg.qr(bases[i])
            p, _ = np.linalg.qr(sum(m @ q for m in matrices))
            rights = [m.T @ p for m in matrices]
            for rank in (0, 1):
                unsent[rank, i] = matrices[rank] - p @ rights[rank].T
            bases[i] = sum(rights)
            sums[i] = (p @ bases[i].T).reshape(SHAPES[i])
        results.append(sums)
    return results


@pytest.mark.parametrize("columns", [1, 3])
def test_two_ranks_follow_the_paper(ranks, columns):
    (first, sent), (second, _) = (rank["any", columns] for rank in ranks)
    for update, wanted in enumerate(expected("any", columns)):
        for index, (a, b, c) in enumerate(zip(first[update], second[update], wanted, strict=True)):
            assert np.array_equal(a, b), (update, index)
            assert np.allclose(a, c, rtol=1e-9, atol=1e-9), (update, index)
    numbers = sum(columns * (SHAPES[i][0] + int(np.prod(SHAPES[i][1:]))) for i in PACKED) + 7 + 9
    assert sent == UPDATES * numbers * 8


def test_a_gradient_of_no_higher_rank_is_exact(ranks):
    results, _ = ranks[0]["of rank one", 3]
    for update, found in enumerate(results):
        wanted = [a + b for a, b in zip(*(draw("of rank one", rank, update) for rank in (0, 1)), strict=True)]
        for index in PACKED:
            assert np.allclose(found[index], wanted[index], rtol=1e-9, atol=1e-9), (update, index)


def test_a_gradient_that_was_nothing_at_first_is_sent_when_it_comes(ranks):
    results, _ = ranks[0]["nothing at first", 3]
    for found in results[:2]:
        assert not any(np.any(found[index]) for index in PACKED)
    for index in PACKED:
        matrix = results[2][index].reshape(SHAPES[index][0], -1)
        assert np.linalg.matrix_rank(matrix) == 3
        assert np.isfinite(matrix).all()


def test_columns_are_orthonormal_however_alike_they_are():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((5, 100, 4), generator=generator)
    x[1, :, 2] = x[1, :, 0] + 1e-4 * x[1, :, 3]  # nearly alike
    x[2, :, 1] = 3 * x[2, :, 0]  # alike
    x[3] = 0.0
    x[4] *= 1e-25
    found = orthonormal_columns(x)
    products = found.mT @ found
    whole = torch.eye(4)
    for index in (0, 1, 4):
        assert torch.allclose(products[index], whole, atol=1e-5), index
    assert torch.allclose(products[2], torch.diag(torch.tensor([1.0, 0.0, 1.0, 1.0])), atol=1e-5)
    assert not found[3].any()
    for index in (0, 1):
        assert torch.allclose(found[index] @ (found[index].mT @ x[index]), x[index], atol=1e-4)
