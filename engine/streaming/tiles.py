"""Arrays of tiles that live on the compute device or in pinned host memory, and the copies between.

An array holds one row a token. While a tile is computed, the next one is on its way to the device and the last
one on its way back (engine/streaming/copies.py). On a CPU everything is a plain copy.
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
    """(rows, width) in tiles of `tile` rows; the last tile may be shorter.

    `rows` may be lowered, and raised again up to what was allocated, between uses.
    """

    def __init__(self, rows: int, width: int, dtype: torch.dtype, tile: int) -> None:
        self.capacity = self.rows = rows
        self.width, self.dtype, self.tile = width, dtype, tile

    def span(self, index: int) -> slice:
        """Rows of a tile."""
        return slice(index * self.tile, min((index + 1) * self.tile, self.rows))

    @abstractmethod
    def write(self, index: int, value: Tensor) -> None:
        """Stores a tile, (tile rows, width) on the compute device.

        `value` may be freed at once, but not overwritten: its copy may come later.
        """

    @abstractmethod
    def begin_load(self, index: int, slot: Tensor) -> Callable[[], Tensor]:
        """Starts to fetch a tile; calling the result waits for it. It may lie in `slot` or in the array itself.

        From this call until its wait the tile is not written, and `slot`, (tile rows or more, width), is used by nobody
        else. A fetch that is never waited for may go on: the slot is used again by another `begin_load` only.
        """

    def close(self) -> None:  # noqa: B027 - most homes have nothing to release but memory
        """Releases what garbage collection does not."""


class DeviceTiles(TileArray):
    """Lives on the compute device: nothing is copied to read it."""

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
    """Lives in pinned host memory of a machine with a CUDA device."""

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
    """Reads tiles of arrays of one width and dtype ahead of their use, through two slots on the compute device.

    A slot belongs to its tile from the fetch until the tile is given up or, once it was read, until the next `read`.
    So a tile that was read is valid until another one is, whatever is fetched in between.
    """

    def __init__(self, width: int, dtype: torch.dtype, tile: int, device: torch.device) -> None:
        self._slots = [torch.empty((tile, width), dtype=dtype, device=device) for _ in range(2)]
        self._pending: dict[tuple[TileArray, int], tuple[int, Callable[[], Tensor]]] = {}
        self._lent: int | None = None

    def prefetch(self, array: TileArray, index: int) -> None:
        """Starts to fetch a tile; does nothing if it is on its way, or if no slot is free."""
        if (array, index) in self._pending:
            return
        taken = {self._lent, *(slot for slot, _ in self._pending.values())}
        free = [slot for slot in range(len(self._slots)) if slot not in taken]
        if free:
            self._pending[array, index] = free[0], array.begin_load(index, self._slots[free[0]])

    def reset(self) -> None:
        """Gives up what was fetched ahead: an abandoned sequence must not leak into the next."""
        self._pending.clear()
        self._lent = None

    def read(self, array: TileArray, index: int) -> Tensor:
        """The tile, (tile rows, width) on the compute device."""
        if (array, index) not in self._pending:
            self._pending.clear()  # what was fetched ahead was guessed wrong
            self.prefetch(array, index)
        self._lent, wait = self._pending.pop((array, index))
        return wait()
