"""ProcessGroup of the ranks that train together. In a single process, every collective is a no-op.

All ranks call every method except `emergency` in the same order. Decisions that depend on a rank's clock, disk or inbox
are made by rank 0 for all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from engine.hardware.rank_place import Ranks

if TYPE_CHECKING:
    from engine.protocol.events import Event

T = TypeVar("T")


class ProcessGroup:
    """Process group of a single process; engine.distributed.torch_process_group implements several.

    Attributes:
        rank: Rank of this process.
        size: Number of ranks.
        ranks: Ranks by host, from the launcher.
        emergency: Callback of the loop that saves the state available without the other ranks, from any thread.
    """

    def __init__(self) -> None:
        self.rank, self.size = 0, 1
        self.ranks = Ranks()
        self.emergency: Callable[[], Any] = lambda: None

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which makes decisions and writes shared files."""
        return self.rank == 0

    def agree(self, value: Callable[[], T]) -> T:
        """Broadcasts rank 0's result of `value` to every rank."""
        return value()

    def total(self, values: list[float]) -> list[float]:
        """Sums each value over all ranks."""
        return values

    def gather(self, value: T) -> list[T]:
        """Gathers every rank's value on every rank."""
        return [value]

    @contextlib.contextmanager
    def leader_first(self) -> Iterator[None]:
        """Runs the block on rank 0 first, and on the other ranks once its files are complete."""
        yield

    def report(self, emit: Callable[[Event], None], step: int, seconds: float) -> None:
        """Emits a RankReported for each rank after an update, at a limited rate."""
