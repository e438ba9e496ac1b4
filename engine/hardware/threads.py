"""How OpenMP's threads wait for each other: read once by its runtime, when torch is imported."""

from __future__ import annotations

from collections.abc import MutableMapping

_POLICY, _SPINS = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"
_ROUNDS = 3000


def limit_omp_spin(environment: MutableMapping[str, str]) -> None:
    """Lets threads of processes with this environment spin for a moment before they sleep, unless it says otherwise.

    Threads that spin as long as they like (ACTIVE) make torch seven times slower when other processes want the same
    cores. Threads that sleep at once have to be woken for every operation, 0.1 ms each. Steps of the demo
    model at 1,024 tokens on 4 cores, idle and beside 4 processes that compute: 0.43 s and 2.9 s spinning, 0.63 s and
    1.1 s sleeping, 0.50 s and 1.3 s with 3,000 rounds of spinning (`python benchmarks/threads.py`).
    """
    if _POLICY in environment or _SPINS in environment:
        return
    environment[_POLICY] = "PASSIVE"  # what other runtimes than GNU's read
    environment[_SPINS] = str(_ROUNDS)
