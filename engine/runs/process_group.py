"""What a recipe asks of the processes that train with it. Alone, every question answers itself.

Every method but `emergency` is called by all ranks in the same order: what one rank decides by its clock, its disk or
its inbox is decided by rank 0 for all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from engine.hardware.rank_place import Ranks

if TYPE_CHECKING:
    from engine.protocol import Event

T = TypeVar("T")


class ProcessGroup:
    """One process alone; engine.distributed.torch_process_group has more.

    Attributes:
        rank: Number of this process, from 0.
        size: Processes.
        ranks: The same by host, as the launcher said.
        emergency: Set by the loop: saves what can be saved without the other ranks, in whatever thread calls it.
    """

    def __init__(self) -> None:
        self.rank, self.size = 0, 1
        self.ranks = Ranks()
        self.emergency: Callable[[], Any] = lambda: None

    @property
    def leads(self) -> bool:
        """Whether this process decides, and writes what is written once."""
        return self.rank == 0

    def agree(self, value: Callable[[], T]) -> T:
        """What `value` gives in rank 0, in every rank."""
        return value()

    def total(self, values: list[float]) -> list[float]:
        """The sums over all ranks."""
        return values

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in every rank."""
        return [value]

    @contextlib.contextmanager
    def leader_first(self) -> Iterator[None]:
        """Rank 0 runs the block alone; the others after it, when what it left on disk is complete."""
        yield

    def report(self, emit: Callable[[Event], None], step: int, seconds: float) -> None:
        """An update is done: tells how each rank fares, not too often."""
