"""Threads and caches of every test and of the processes that they start. Set before anything imports torch."""

import atexit
import gc
import os
import shutil
import signal
import sys
import tempfile

import pytest
from hypothesis import HealthCheck, is_hypothesis_test, settings
from hypothesis.internal.conjecture import providers

from engine.hardware.environment import limit_omp_spin

# Each worker of pytest-xdist has one core. Two threads wait for one another: they take three times the processor time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
limit_omp_spin(os.environ)

# Where the environment asks for no bytecode, each of hundreds of processes would compile the engine again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A shell starts what runs in its background without SIGINT, and the processes of tests that send it would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What was measured on the machine that runs the tests would change what they plan.
_CACHE = tempfile.mkdtemp(prefix="elite-tests-")
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
os.environ["XDG_CACHE_HOME"] = _CACHE

# A machine that has other work is slow, not wrong. The same tests pass or fail on every machine, whoever changed what;
# `make test-all` looks further, each time elsewhere.
_ANYWHERE = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", _ANYWHERE, derandomize=True, database=None)
settings.register_profile("explore", _ANYWHERE, derandomize=False, print_blob=True)
settings.load_profile("same")
# Hypothesis also tries constants of the modules that are loaded so far, which differ from worker to worker.
_constants, _none = providers._get_local_constants, providers.Constants()
providers._get_local_constants = lambda: _none if settings.default.derandomize else _constants()
_EXPLORED = 5
"Times as many examples while exploring."

pytest_plugins = ["tests.quick", "tests.seeded", "tests.shuffled", "tests.watchdog"]

# A pass of the garbage collector over the million objects that collection leaves takes half a second.
gc.disable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Gives each property more examples while exploring, also those that set a number of their own."""
    if settings.default.derandomize:
        return
    tests = {getattr(item.obj, "__func__", item.obj) for item in items if isinstance(item, pytest.Function)}
    for test in filter(is_hypothesis_test, tests):
        # The one place where Hypothesis keeps them: a second @settings is refused.
        own = test._hypothesis_internal_use_settings
        test._hypothesis_internal_use_settings = settings(own, max_examples=_EXPLORED * own.max_examples)


def pytest_collection_finish() -> None:
    """Keeps what was imported and collected out of the garbage collector's passes, and makes fewer of them."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)
    gc.enable()
