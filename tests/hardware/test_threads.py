"""How threads wait is set where nothing else was asked for, and in the training process before torch reads it."""

from __future__ import annotations

import os

import pytest

from engine.hardware.threads import wait_briefly


def test_threads_spin_for_a_moment():
    environment = {"PATH": "/bin"}
    wait_briefly(environment)
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE"
    assert int(environment["GOMP_SPINCOUNT"]) > 0


@pytest.mark.parametrize("own", [{"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "7"}])
def test_what_a_user_has_set_stays(own):
    environment = dict(own)
    wait_briefly(environment)
    assert environment == own


def test_the_tests_processes_inherit_it():
    assert os.environ["OMP_WAIT_POLICY"]
