"""Ends a process whose test neither ends nor heeds its timeout, and prints where each thread stands.

The timeout is an exception: a loop that catches everything swallows it, a fixture that waits for ever comes after it,
and code that holds the interpreter's lock never sees it. pytest-xdist reports the test as failed, and goes on with
another process.
"""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Generator

import pytest
from pytest_timeout import get_env_settings

GRACE_S = 300
"What a test's fixtures may take to end once its timeout has passed, and a process once its last test has."

_stderr = -1


def pytest_configure() -> None:
    global _stderr
    _stderr = os.dup(2)  # nothing is captured yet


def _arm(item: pytest.Item) -> None:
    marker = item.get_closest_marker("timeout")
    limit = marker.args[0] if marker and marker.args else get_env_settings(item.config).timeout
    if limit:  # none in a debugger, where somebody asks for 0
        faulthandler.dump_traceback_later(float(limit) + GRACE_S, exit=True, file=_stderr)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    _arm(item)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    _arm(item)  # pytest cancels it where a test fails


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish() -> None:
    faulthandler.dump_traceback_later(GRACE_S, exit=True, file=_stderr)
