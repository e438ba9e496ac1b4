"""`--quick`: leaves out every test that took 0.6 s or longer when `--write-long` was last given.

A new test is run until it is known to be long, so that a forgotten list costs time and never a test.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest

FILE = Path(__file__).with_name("long_tests.json")
LONG_S = 0.6


def known() -> set[str]:
    """Node ids of the tests that are known to be long."""
    by_file = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    return {f"{file}::{test}" for file, tests in by_file.items() for test in tests}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tiers")
    group.addoption("--quick", action="store_true", help="leave out the tests that took 0.6 s or longer")
    group.addoption("--write-long", action="store_true", help=f"write those tests into {FILE.name}")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--write-long") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Clock())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--quick"):
        return
    long = known()
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in long])
    items[:] = [item for item in items if item.nodeid not in long]


class Clock:
    """Adds up what each test took, its fixtures included."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration

    def pytest_sessionfinish(self) -> None:
        found = known() - set(self.seconds)
        found |= {test for test, seconds in self.seconds.items() if seconds >= LONG_S}
        by_file: dict[str, list[str]] = defaultdict(list)
        for test in sorted(found):
            file, _, name = test.partition("::")
            by_file[file].append(name)
        FILE.write_text(json.dumps(by_file, indent=1, ensure_ascii=False) + "\n")
