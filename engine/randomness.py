"""Keys every random number of training by (seed, step, window, layer, tile, purpose).

Modules draw from torch's global generators, whose state depends on every earlier draw. A recomputed pass, a later
window and a resumed run must not depend on that history. The generators are therefore seeded from a key before every
draw that counts, on the CPU and on the compute device alike, and restored afterwards.

An update seeds the CPU's generator by (seed, step). Each of its windows draws a number from it. A window's layers and
its embedding derive theirs by (number, purpose, layer, tile).

torch's CPU generator (mt19937) uses the lower 32 bits of a seed, a GPU's (Philox) all 64. `derive_seed` spreads a key
over all of them, which sums such as `seed + step` or shifts such as `seed << 32` do not.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


def derive_seed(*key: int | str) -> int:
    """Hashes a key to 64 bits (BLAKE2b, RFC 7693), the same on every platform and in every version."""
    text = "\x1f".join(str(part) for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def draw_seed() -> int:
    """Draws 63 bits from torch's CPU generator, as the key of the random numbers that follow."""
    return int(torch.randint(2**63 - 1, ()))


class KeyedGenerators:
    """torch's global generators of the CPU and of one device, which modules draw from.

    Seeding them does not synchronize with a GPU or touch the generators of other devices, unlike `torch.manual_seed`.

    Args:
        device: Compute device of the modules.
    """

    def __init__(self, device: torch.device) -> None:
        self._of_cpu = torch.default_generator
        self._of_device: torch.Generator | None = None
        if device.type == "cuda":
            torch.cuda.init()
            index = torch.cuda.current_device() if device.index is None else device.index
            self._of_device = torch.cuda.default_generators[index]
        self._seeded = torch.empty(0, dtype=torch.uint8)

    @property
    def _all(self) -> list[torch.Generator]:
        return [self._of_cpu] if self._of_device is None else [self._of_cpu, self._of_device]

    def seed(self, *key: int | str, watch: bool = False) -> None:
        """Seeds the generators from a key.

        Args:
            key: See `derive_seed`.
            watch: Whether to save the state that `drew` compares with.
        """
        value = derive_seed(*key)
        for generator in self._all:
            generator.manual_seed(value)
        if watch:
            self._seeded = self._of_cpu.get_state()

    def drew(self) -> bool:
        """Tells whether a number was drawn since `seed(..., watch=True)`."""
        if self._of_device is not None and self._of_device.get_offset():
            return True
        return not torch.equal(self._of_cpu.get_state(), self._seeded)

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Restores on exit the states that the generators had on entry."""
        states = [(generator, generator.get_state()) for generator in self._all]
        try:
            yield
        finally:
            for generator, state in states:
                generator.set_state(state)


@contextlib.contextmanager
def keyed_numbers(device: torch.device, *key: int | str) -> Iterator[None]:
    """Makes random numbers on the CPU and the device depend on the key alone, and restores the generators on exit."""
    generators = KeyedGenerators(device)
    with generators.restored():
        generators.seed(*key)
        yield


@dataclass(frozen=True)
class RandomState:
    """The generators' states at one moment."""

    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, Any]


def capture_random() -> RandomState:
    """Captures the states of torch's (CPU and every GPU), numpy's and Python's generators."""
    tensors = {"torch.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {f"torch.cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    numpy_state: dict[str, Any] = np.random.get_state(legacy=False)
    numpy_state["state"] = {**numpy_state["state"], "key": numpy_state["state"]["key"].tolist()}
    return RandomState(tensors, {"numpy": numpy_state, "python": random.getstate()})


def restore_random(state: RandomState) -> None:
    """Restores the generators. Ignores states of GPUs that are no longer present."""
    torch.set_rng_state(state.tensors["torch.cpu"])
    for device in range(torch.cuda.device_count()):
        if (name := f"torch.cuda.{device}") in state.tensors:
            torch.cuda.set_rng_state(state.tensors[name], device)
    numpy_state = dict(state.numbers["numpy"])
    numpy_state["state"] = {**numpy_state["state"], "key": np.array(numpy_state["state"]["key"], dtype=np.uint32)}
    np.random.set_state(numpy_state)
    version, internal, gauss = state.numbers["python"]
    random.setstate((version, tuple(internal), gauss))
