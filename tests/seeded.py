"""Seeds the generators of Python, NumPy and torch: a test draws the same numbers whichever tests ran before it."""

from __future__ import annotations

import random
from collections.abc import Generator
from typing import Any

import numpy as np
import pytest
import torch

_SEED = 0


def _seed() -> None:
    random.seed(_SEED)
    np.random.seed(_SEED)
    torch.manual_seed(_SEED)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    _seed()


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Generator[None, Any, Any]:
    """Seeds a fixture that tests share. The test that happens to make it draws what it would have drawn without it."""
    if fixturedef.scope == "function":
        return (yield)
    python, numpy, tensors = random.getstate(), np.random.get_state(), torch.get_rng_state()
    _seed()
    try:
        return (yield)
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(tensors)
