"""How threads wait is set where nothing else was asked for, and in the training process before torch reads it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from engine.hardware.environment import limit_omp_spin
from engine.hardware.rank_place import RankPlace
from engine.launch.rank import prepare_environment


def test_threads_spin_for_a_moment():
    environment = {"PATH": "/bin"}
    limit_omp_spin(environment)
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE"
    assert int(environment["GOMP_SPINCOUNT"]) > 0


@pytest.mark.parametrize("own", [{"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "7"}])
def test_what_a_user_has_set_stays(own):
    environment = dict(own)
    limit_omp_spin(environment)
    assert environment == own


def test_a_rank_that_torchrun_started_sets_it(monkeypatch):
    for name, value in (("CUDA_VISIBLE_DEVICES", "0"), ("CUDA_DEVICE_ORDER", ""), ("OMP_NUM_THREADS", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NCCL_NVLS_ENABLE", "0")
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    prepare_environment(RankPlace(rank=0, size=2, local_rank=0, local_size=2))
    assert int(os.environ["GOMP_SPINCOUNT"]) > 0


def test_it_is_set_before_a_command_imports_torch():
    """OpenMP's runtime reads it once, when torch is loaded."""
    script = """
import os, sys
from engine import cli
cli.main(["optimizations", "--json"])
print(os.environ["GOMP_SPINCOUNT"], file=sys.stderr)
"""
    clean = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    clean["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run([sys.executable, "-c", script], env=clean, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(done.stderr.split()[-1]) > 0
