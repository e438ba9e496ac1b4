"""Threads and caches of every test and of the processes that they start. Set before anything imports torch."""

import atexit
import os
import shutil
import tempfile

from hypothesis import settings

from engine.hardware.environment import limit_omp_spin

os.environ.setdefault("OMP_NUM_THREADS", "2")
limit_omp_spin(os.environ)

# What was measured on the machine that runs the tests would change what they plan.
_CACHE = tempfile.mkdtemp(prefix="elite-tests-")
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
os.environ["XDG_CACHE_HOME"] = _CACHE

# A machine that has other work is slow, not wrong.
settings.register_profile("any-machine", deadline=None)
settings.load_profile("any-machine")

pytest_plugins = ["tests.quick"]
