"""Arrays of tiles that live on the compute device, in pinned host memory or on disk, and the copies between.

An array holds one row a token. While a tile is computed, the next one is on its way to the device and the last
one on its way back: copies run on two side streams, ordered by events. On a CPU everything is a plain copy.
"""

from __future__ import annotations

import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from engine.plan.stream_plan import Home, StreamPlanError
from engine.streaming.pinned import pinned_empty


class CopyStreams:
    """The two side streams of one CUDA device: to it and from it."""

    def __init__(self, device: torch.device) -> None:
        self.to_device = torch.cuda.Stream(device)
        self.to_host = torch.cuda.Stream(device)


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
        """Stores a tile, (tile rows, width) on the compute device. `value` may be reused at once."""

    @abstractmethod
    def begin_load(self, index: int, slot: Tensor) -> Callable[[], Tensor]:
        """Starts to fetch a tile; calling the result waits for it. It may lie in `slot` or in the array itself."""

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
        stream = self._streams.to_host
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._data[self.span(index)].copy_(value, non_blocking=True)
            self._written[index] = stream.record_event()
        value.record_stream(stream)

    def begin_load(self, index: int, slot: Tensor) -> Callable[[], Tensor]:
        """See TileArray."""
        stream = self._streams.to_device
        # The slot's last user was enqueued before this call.
        stream.wait_stream(torch.cuda.current_stream())
        if index in self._written:
            stream.wait_event(self._written[index])
        rows = self._data[self.span(index)]
        part = slot[: rows.shape[0]]
        with torch.cuda.stream(stream):
            part.copy_(rows, non_blocking=True)
            arrived = stream.record_event()

        def wait() -> Tensor:
            torch.cuda.current_stream().wait_event(arrived)
            return part

        return wait


class DiskTiles(TileArray):
    """Lives in an unlinked temporary file: the space returns even if the process is killed.

    One thread moves tiles between the file and two staging buffers (pinned where there is a CUDA device), in the
    order of the calls, so that a read sees the write before it.
    """

    _STAGES = 2

    def __init__(
        self,
        rows: int,
        width: int,
        dtype: torch.dtype,
        tile: int,
        directory: Path,
        streams: CopyStreams | None,
    ) -> None:
        super().__init__(rows, width, dtype, tile)
        self._file = tempfile.TemporaryFile(buffering=0, dir=directory, prefix="elite-spill-")  # noqa: SIM115
        self._row_bytes = width * dtype.itemsize
        try:
            os.posix_fallocate(self._file.fileno(), 0, rows * self._row_bytes)  # a full disk is met now, not mid-step
        except OSError:
            self._file.close()
            raise
        self._streams = streams
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="spill")
        new = torch.empty if streams is None else pinned_empty
        self._stages = [new((min(tile, rows), width), dtype=dtype) for _ in range(2 * self._STAGES)]
        self._busy: list[Future[None] | None] = [None] * len(self._stages)
        self._turn = {"read": 0, "write": 0}

    def _stage(self, direction: str) -> int:
        """A staging buffer that no pending transfer uses; reads and writes have two each."""
        turn = self._turn[direction]
        self._turn[direction] = (turn + 1) % self._STAGES
        index = turn + (self._STAGES if direction == "write" else 0)
        pending = self._busy[index]
        if pending is not None:
            pending.result()
        return index

    def _bytes(self, stage: Tensor) -> memoryview:
        return memoryview(stage.view(torch.uint8).numpy()).cast("B")  # type: ignore[arg-type]

    def write(self, index: int, value: Tensor) -> None:
        """See TileArray."""
        number = self._stage("write")
        span = self.span(index)
        stage = self._stages[number][: value.shape[0]]
        copied = None
        if self._streams is None:
            stage.copy_(value)
        else:
            stream = self._streams.to_host
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                stage.copy_(value, non_blocking=True)
                copied = stream.record_event()
            value.record_stream(stream)

        def save() -> None:
            if copied is not None:
                copied.synchronize()
            self._move(self._file.write, span, stage)

        self._busy[number] = self._thread.submit(save)

    def begin_load(self, index: int, slot: Tensor) -> Callable[[], Tensor]:
        """See TileArray."""
        number = self._stage("read")
        span = self.span(index)
        stage = self._stages[number][: span.stop - span.start]
        arrived = self._thread.submit(self._move, self._file.readinto, span, stage)
        self._busy[number] = arrived
        part = slot[: stage.shape[0]]

        def wait() -> Tensor:
            arrived.result()
            part.copy_(stage, non_blocking=True)
            if self._streams is not None:
                copied = torch.cuda.current_stream().record_event()
                self._busy[number] = self._thread.submit(copied.synchronize)
            return part

        return wait

    def _move(self, operation: Callable[[memoryview], int | None], span: slice, stage: Tensor) -> None:
        """Reads or writes a whole tile at its place in the file."""
        self._file.seek(span.start * self._row_bytes)
        view = self._bytes(stage)
        while view:
            done = operation(view)
            if not done:
                raise OSError("the spill file ended early")
            view = view[done:]

    def close(self) -> None:
        """Waits for pending transfers and gives the space back."""
        self._thread.shutdown()
        self._file.close()


class TileReader:
    """Reads tiles of arrays of one width and dtype ahead of their use, through two slots on the compute device.

    A tile that was read stays valid until the second `prefetch` after it.
    """

    def __init__(self, width: int, dtype: torch.dtype, tile: int, device: torch.device) -> None:
        self._slots = [torch.empty((tile, width), dtype=dtype, device=device) for _ in range(2)]
        self._next = 0
        self._pending: dict[tuple[int, int], Callable[[], Tensor]] = {}

    def prefetch(self, array: TileArray, index: int) -> None:
        """Starts to fetch a tile; does nothing if it is on its way, or if two others are."""
        key = (id(array), index)
        if key in self._pending or len(self._pending) >= len(self._slots):
            return
        self._pending[key] = array.begin_load(index, self._slots[self._next])
        self._next = 1 - self._next

    def reset(self) -> None:
        """Forgets what was fetched ahead: an abandoned sequence must not leak into the next."""
        self._pending.clear()

    def read(self, array: TileArray, index: int) -> Tensor:
        """The tile, (tile rows, width) on the compute device."""
        key = (id(array), index)
        if key not in self._pending:
            self._pending.clear()  # what was fetched ahead was guessed wrong
            self.prefetch(array, index)
        return self._pending.pop(key)()


class TileFactory:
    """Makes arrays in one home.

    Args:
        home: "gpu" keeps them on the compute device.
        device: The compute device; on a CPU "gpu" and "host" are the same.
        directory: Where files of the home "disk" go.
    """

    def __init__(self, home: Home, device: torch.device, streams: CopyStreams | None, directory: Path | None) -> None:
        if home == "disk" and directory is None:
            raise StreamPlanError("hidden_home disk needs a directory for its files")
        self.home, self.device, self._streams, self._directory = home, device, streams, directory

    def array(self, rows: int, width: int, dtype: torch.dtype, tile: int) -> TileArray:
        """An array with undefined contents.

        Raises:
            MemoryError, torch.OutOfMemoryError, OSError: the home has no room for it.
        """
        if self.home == "disk":
            assert self._directory is not None
            return DiskTiles(rows, width, dtype, tile, self._directory, self._streams)
        if self.home == "host" and self._streams is not None:
            return PinnedTiles(rows, width, dtype, tile, self._streams)
        return DeviceTiles(rows, width, dtype, tile, self.device)
