"""Host memory that is freed is given back."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

HOLES = """
import psutil, sys, torch
from engine.hardware.tuning import keep_heap_whole
if sys.argv[1] == "tuned":
    assert keep_heap_whole()
process = psutil.Process()
first = torch.empty(30 << 20, dtype=torch.uint8)
del first  # glibc now takes whatever is smaller from its heap
began, large, survivors = process.memory_info().rss, [], []
for _ in range(20):
    large.append(torch.ones(9 << 20, dtype=torch.uint8))
    survivors.append(torch.ones(1 << 16, dtype=torch.uint8))
del large
print(process.memory_info().rss - began)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_large_tensors_leave_no_holes_in_the_heap():
    grown = {
        how: int(subprocess.run([sys.executable, "-c", HOLES, how], capture_output=True, text=True, check=True).stdout)
        for how in ("as it is", "tuned")
    }
    assert grown["tuned"] < 32 << 20 < grown["as it is"]
