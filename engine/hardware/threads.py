"""Sets how long OpenMP's threads spin, before its runtime reads the settings at the import of torch."""

from __future__ import annotations

from collections.abc import MutableMapping

_POLICY, _SPINS = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"
_ROUNDS = 3000


def limit_omp_spin(environment: MutableMapping[str, str]) -> None:
    """Makes OpenMP threads with this environment spin briefly before they sleep, unless it has settings of its own.

    Threads that spin without limit (ACTIVE) make torch seven times slower when other processes use the same cores.
    Threads that sleep immediately must be woken for every operation, at 0.1 ms each. A step of the demo model at
    1,024 tokens on 4 cores takes 0.43 s on an idle machine and 2.9 s beside 4 computing processes if threads spin,
    0.63 s and 1.1 s if they sleep, and 0.50 s and 1.3 s with 3,000 rounds of spinning (`python benchmarks/threads.py`).
    """
    if _POLICY in environment or _SPINS in environment:
        return
    environment[_POLICY] = "PASSIVE"  # for runtimes other than GNU's
    environment[_SPINS] = str(_ROUNDS)
