"""Threads and caches of every test and of the processes that they start. Set before anything imports torch."""

import atexit
import gc
import os
import shutil
import sys
import tempfile

from hypothesis import settings

from engine.hardware.environment import limit_omp_spin

# Each worker of pytest-xdist has one core. Two threads wait for one another: they take three times the processor time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
limit_omp_spin(os.environ)

# Where the environment asks for no bytecode, each of hundreds of processes would compile the engine again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# What was measured on the machine that runs the tests would change what they plan.
_CACHE = tempfile.mkdtemp(prefix="elite-tests-")
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
os.environ["XDG_CACHE_HOME"] = _CACHE

# A machine that has other work is slow, not wrong.
settings.register_profile("any-machine", deadline=None)
settings.load_profile("any-machine")

pytest_plugins = ["tests.quick"]

# A pass of the garbage collector over the million objects that collection leaves takes half a second.
gc.disable()


def pytest_collection_finish() -> None:
    """Keeps what was imported and collected out of the garbage collector's passes, and makes fewer of them."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)
    gc.enable()
