"""The table of benchmarks/parity_gpu.py, a row a test: every home and layout at seven tiles, on a GPU."""

from __future__ import annotations

import pytest
import torch

from benchmarks.parity_gpu import TOLERANCE, Bench, layouts
from tests.support.side_streams import simulated

ROWS = list(layouts())


@pytest.fixture(scope="module")
def bench():
    return Bench(torch.device("cuda"), 2100)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("layout", ROWS, ids=lambda layout: " ".join(layout.name.split()))
def test_fp32_gradient_of_every_layout(layout, bench, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    gradient, loss = bench.measure(layout, tmp_path)
    assert gradient < TOLERANCE
    assert loss < TOLERANCE


def test_the_table_on_a_cpu_that_copies(tmp_path):
    """Every third row, smaller, so that the table itself is tested without a GPU."""
    bench = Bench(torch.device("cpu"), 150)
    with simulated("to the device late, home late"):
        for layout in ROWS[::3]:
            gradient, loss = bench.measure(layout, tmp_path)
            assert 0 < gradient < TOLERANCE, layout
            assert loss < TOLERANCE, layout
        assert len({bench.reference(layout)[0] for layout in ROWS}) == 6, "every window and packing is another task"
