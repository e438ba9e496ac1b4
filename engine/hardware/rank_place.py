"""Reads a rank's place among all ranks from its launcher's environment. Imports no torch.

A rank does not count GPUs. CUDA shows it one, NVML still shows all of the machine's, and neither tells the number of
ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_LOCAL_SIZES = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE")
"""Variables of torchrun and DeepSpeed's launcher for the number of ranks on a host."""


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Numbers of ranks that train together."""

    here: int = 1
    "Ranks on this host."
    all: int = 1
    "Ranks on all hosts."


@dataclass(frozen=True, kw_only=True)
class RankPlace:
    """Place of one rank among all."""

    rank: int
    size: int
    local_rank: int
    local_size: int

    @property
    def ranks(self) -> Ranks:
        """Numbers of ranks on this host and on all."""
        return Ranks(here=self.local_size, all=self.size)

    @staticmethod
    def from_environment(environment: Mapping[str, str]) -> RankPlace:
        """Reads the variables that torchrun, DeepSpeed's launcher or `engine train` set for a rank.

        Raises:
            ValueError: a variable is missing or is no number; the message names it.
        """
        rank, size = _number(environment, "RANK"), _number(environment, "WORLD_SIZE")
        local_rank = _number(environment, "LOCAL_RANK")
        name = next((name for name in _LOCAL_SIZES if name in environment), None)
        # Without the variable, the host has at least as many ranks as this rank's place on it.
        local_size = local_rank + 1 if name is None else _number(environment, name)
        place = RankPlace(rank=rank, size=size, local_rank=local_rank, local_size=local_size)
        if not (0 <= rank < size and 0 <= local_rank < local_size <= size):
            raise ValueError(f"{place} is no place among ranks")
        return place


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name)
    if text is None:
        raise ValueError(f"{name} is not set")
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{name} is {text!r}, not a number") from None
