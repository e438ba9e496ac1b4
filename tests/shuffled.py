"""`--shuffle SEED`: runs the files, and the tests within each, in another order. Results must not depend on it.

A file's tests stay together, so that what they share is made once.
"""

from __future__ import annotations

import random
from collections import defaultdict

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("tiers").addoption("--shuffle", type=int, metavar="SEED", help="shuffle the tests")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    seed = config.getoption("--shuffle")
    if seed is None:
        return
    shuffle = random.Random(seed).shuffle
    by_file: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        by_file[item.location[0]].append(item)
    files = list(by_file.values())
    shuffle(files)
    for tests in files:
        shuffle(tests)
    items[:] = [item for tests in files for item in tests]
