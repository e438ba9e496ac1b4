"""Threads of every test and of the processes that they start. Set before anything imports torch."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")
# Threads that spin while they wait take the cores from those that work, once tests run side by side.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
