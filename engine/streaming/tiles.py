"""Arrays of tiles on the compute device or in pinned host memory, and the copies between the two.

An array holds one row a token. While a tile is computed, the next one is copied to the device and the last one back
to the host (engine/streaming/copies.py). On a CPU everything is a plain copy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from engine.hardware.pinned_memory import pinned_empty
from engine.streaming import copies
from engine.streaming.copies import CopyStreams


class TileArray(ABC):
    """An array of (rows, width) in tiles of `tile` rows; the last tile may be shorter.

    `rows` may be lowered between uses, and raised again up to `capacity`.
    """

    def __init__(self, rows: int, width: int, dtype: torch.dtype, tile: int) -> None:
        self.capacity = self.rows = rows
        self.width, self.dtype, self.tile = width, dtype, tile

    def span(self, index: int) -> slice:
        """Returns the rows of a tile."""
        return slice(index * self.tile, min((index + 1) * self.tile, self.rows))

    @abstractmethod
    def write(self, index: int, value: Tensor) -> None:
        """Stores a tile, shape (tile rows, width), on the compute device.

        `value` may be freed at once but not overwritten, because it may be copied later.
        """

    @abstractmethod
    def begin_load(self, index: int, slot: Tensor) -> Callable[[], Tensor]:
        """Starts to fetch a tile, and returns a function that waits for it.

        The tile may lie in `slot` or in the array itself. From this call until the wait callers do not write the tile
        and do not use `slot`. A fetch that is never awaited may still run, so only another `begin_load` may reuse its
        slot.

        Args:
            index: Number of the tile.
            slot: Shape (rows, width) with at least the tile's rows, on the compute device.

        Returns:
            A function that returns the tile, shape (tile rows, width), on the compute device.
        """

    def close(self) -> None:  # noqa: B027 - most homes hold nothing but memory
        """Releases resources that garbage collection does not."""


class DeviceTiles(TileArray):
    """Keeps tiles on the compute device, where they are read without a copy."""

    def __init__(self, rows: int, width: int, dtype: torch.dtype, tile: int, device: torch.device) -> None:
        super().__init__(rows, width, dtype, tile)
        self._data = torch.empty((rows, width), dtype=dtype, device=device)

    def write(self, index: int, value: Tensor) -> None:
        """See TileArray."""
        self._data[self.span(index)].copy_(value)

    def begin_load(self, index: int, slot: Tensor) -> Callable[[], Tensor]:  # noqa: ARG002
        """See TileArray."""
        return lambda: self._data[self.span(index)]


class PinnedTiles(TileArray):
    """Offloads tiles to pinned host memory of a machine with a CUDA device."""

    def __init__(self, rows: int, width: int, dtype: torch.dtype, tile: int, streams: CopyStreams) -> None:
        super().__init__(rows, width, dtype, tile)
        self._data = pinned_empty((rows, width), dtype)
        self._streams = streams
        self._written: dict[int, torch.cuda.Event] = {}

    def write(self, index: int, value: Tensor) -> None:
        """See TileArray."""
        rows = self._data[self.span(index)]
        self._written[index] = copies.begin_copy(self._streams.to_host, [(rows, value)])

    def begin_load(self, index: int, slot: Tensor) -> Callable[[], Tensor]:
        """See TileArray."""
        rows = self._data[self.span(index)]
        part = slot[: rows.shape[0]]
        written = [self._written[index]] if index in self._written else []
        arrived = copies.begin_copy(self._streams.to_device, [(part, rows)], written)

        def wait() -> Tensor:
            copies.wait_for(arrived)
            return part

        return wait


class TileReader:
    """Prefetches tiles of arrays of one width and dtype through two slots on the compute device.

    A slot belongs to its tile from the fetch until the tile is dropped or, once it is read, until the next `read`.
    So a tile stays valid until another tile is read, even if others are prefetched in between.
    """

    def __init__(self, width: int, dtype: torch.dtype, tile: int, device: torch.device) -> None:
        self._slots = [torch.empty((tile, width), dtype=dtype, device=device) for _ in range(2)]
        self._pending: dict[tuple[TileArray, int], tuple[int, Callable[[], Tensor]]] = {}
        self._lent: int | None = None

    def prefetch(self, array: TileArray, index: int) -> None:
        """Starts to fetch a tile; does nothing if it is being fetched already, or if no slot is free."""
        if (array, index) in self._pending:
            return
        taken = {self._lent, *(slot for slot, _ in self._pending.values())}
        free = [slot for slot in range(len(self._slots)) if slot not in taken]
        if free:
            self._pending[array, index] = free[0], array.begin_load(index, self._slots[free[0]])

    def reset(self) -> None:
        """Drops prefetched tiles, so that an abandoned sequence does not leak into the next."""
        self._pending.clear()
        self._lent = None

    def read(self, array: TileArray, index: int) -> Tensor:
        """Returns a tile, shape (tile rows, width), on the compute device."""
        if (array, index) not in self._pending:
            self._pending.clear()  # the prefetched tiles were the wrong ones
            self.prefetch(array, index)
        self._lent, wait = self._pending.pop((array, index))
        return wait()
