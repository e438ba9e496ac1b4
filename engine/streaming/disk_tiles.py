"""Offloads tiles to files, for contexts whose hidden states do not fit in host memory.

Transfers between file and device pass through host buffers (pinned where there is a CUDA device). A few buffers serve
all files of a step, because only one layer's arrays are in use at a time.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from engine.hardware.pinned_memory import pinned_empty
from engine.streaming import copies
from engine.streaming.copies import CopyStreams
from engine.streaming.tiles import TileArray

_THREADS = 4
_WRITES_AT_ONCE = 2
"""Pending writes of one buffer size; a further write waits for the disk."""
_ENOUGH = 6
"""Buffers of one size; beyond this count, `take` waits for a returned buffer that the device still copies from."""


class DiskStaging:
    """Host buffers and I/O threads that all files of one step share."""

    def __init__(self, streams: CopyStreams | None) -> None:
        self.streams = streams
        self._threads = [ThreadPoolExecutor(1, thread_name_prefix="spill") for _ in range(_THREADS)]
        self._next = itertools.cycle(self._threads)
        self._free: dict[int, list[tuple[Tensor, torch.cuda.Event | None]]] = defaultdict(list)
        self._writes: dict[int, threading.Semaphore] = defaultdict(lambda: threading.Semaphore(_WRITES_AT_ONCE))
        self._lock = threading.Lock()
        self._made: dict[int, int] = defaultdict(int)

    def thread(self) -> ThreadPoolExecutor:
        """Assigns a thread to a new file, so that transfers of one file keep their order."""
        return next(self._next)

    def take(self, size: int) -> Tensor:
        """Returns an idle buffer of `size` bytes, (size,) uint8.

        Raises:
            MemoryError: the host has no room for another buffer.
        """
        with self._lock:
            free = self._free[size]
            for number, (buffer, copied) in enumerate(free):
                if copied is None or copied.query():
                    del free[number]
                    return buffer
            if free and self._made[size] >= _ENOUGH:
                buffer, copied = free.pop(0)
                assert copied is not None
                copied.synchronize()
                return buffer
            self._made[size] += 1
        if self.streams is None:
            return torch.empty(size, dtype=torch.uint8)
        return pinned_empty((size,), torch.uint8)

    def give(self, buffer: Tensor, copied: torch.cuda.Event | None = None) -> None:
        """Returns a buffer, (size,) uint8, to the pool; it is idle once the device has reached `copied`."""
        with self._lock:
            self._free[buffer.numel()].append((buffer, copied))

    @property
    def bytes(self) -> int:
        """Bytes of all buffers; they are kept for the next tile."""
        return sum(size * count for size, count in self._made.items())

    def writing(self, size: int) -> threading.Semaphore:
        """Returns the semaphore that bounds the pending writes of one buffer size."""
        return self._writes[size]

    def close(self) -> None:
        """Ends the threads. The files must be closed before."""
        for thread in self._threads:
            thread.shutdown()
        self._free.clear()


class DiskTiles(TileArray):
    """Stores tiles in an unlinked temporary file, whose space is freed even if the process is killed.

    One thread reads and writes its tiles in the order of the calls, so that a read sees the write before it.
    """

    def __init__(
        self, rows: int, width: int, dtype: torch.dtype, tile: int, directory: Path, staging: DiskStaging
    ) -> None:
        super().__init__(rows, width, dtype, tile)
        self._file = tempfile.TemporaryFile(buffering=0, dir=directory, prefix="elite-spill-")  # noqa: SIM115
        self._row_bytes = width * dtype.itemsize
        try:
            os.posix_fallocate(self._file.fileno(), 0, rows * self._row_bytes)  # a full disk fails here, not mid-step
        except OSError:
            self._file.close()
            raise
        self._staging, self._thread = staging, staging.thread()
        self._buffer_bytes = min(tile, rows) * self._row_bytes
        self._failed: BaseException | None = None

    def write(self, index: int, value: Tensor) -> None:
        """See TileArray. The next call raises the error of a failed write."""
        self._check()
        staging, streams = self._staging, self._staging.streams
        bound = staging.writing(self._buffer_bytes)
        bound.acquire()
        buffer = staging.take(self._buffer_bytes)
        rows = self._rows_of(buffer, value.shape[0])
        copied = None
        if streams is None:
            rows.copy_(value)
        else:
            copied = copies.begin_copy(streams.to_host, [(rows, value)])

        def save() -> None:
            try:
                if copied is not None:
                    copied.synchronize()
                self._move(self._file.write, self.span(index), buffer)
            except BaseException as error:
                self._failed = error
            finally:
                staging.give(buffer)
                bound.release()

        self._thread.submit(save)

    def begin_load(self, index: int, slot: Tensor) -> Callable[[], Tensor]:
        """See TileArray."""
        self._check()
        span = self.span(index)
        buffer = self._staging.take(self._buffer_bytes)
        arrived = self._thread.submit(self._move, self._file.readinto, span, buffer)
        return _Load(self, arrived, buffer, slot[: span.stop - span.start])

    def _rows_of(self, buffer: Tensor, rows: int) -> Tensor:
        return buffer[: rows * self._row_bytes].view(self.dtype).view(rows, self.width)

    def _move(self, operation: Callable[[memoryview], int | None], span: slice, buffer: Tensor) -> None:
        """Reads or writes a whole tile at its offset in the file."""
        self._file.seek(span.start * self._row_bytes)
        view = memoryview(buffer.numpy())[: (span.stop - span.start) * self._row_bytes]  # type: ignore[arg-type]
        while view:
            done = operation(view)
            if not done:
                raise OSError("the spill file ended early")
            view = view[done:]

    def _check(self) -> None:
        if self._failed is not None:
            raise self._failed

    def close(self) -> None:
        """Waits for pending transfers and frees the space."""
        self._thread.submit(self._file.close).result()


class _Load:
    """A pending read of one tile; returns its buffer to the pool once it is copied, or when the read is dropped."""

    def __init__(self, array: DiskTiles, arrived: Future[None], buffer: Tensor, part: Tensor) -> None:
        self._array, self._arrived, self._part = array, arrived, part
        self._buffer: Tensor | None = buffer

    def __call__(self) -> Tensor:
        """Waits for the tile and returns it, (tile rows, width), on the device."""
        buffer, self._buffer = self._buffer, None
        assert buffer is not None
        staging = self._array._staging
        copied = None
        try:
            self._arrived.result()
            self._array._check()  # a write before it may have failed
            rows = self._array._rows_of(buffer, self._part.shape[0])
            if staging.streams is None:
                self._part.copy_(rows)
            else:
                copied = copies.begin_copy(staging.streams.to_device, [(self._part, rows)])
                copies.wait_for(copied)
        finally:
            staging.give(buffer, copied)
        return self._part

    def __del__(self) -> None:
        buffer, staging = self._buffer, self._array._staging
        if buffer is not None:
            self._arrived.add_done_callback(lambda _: staging.give(buffer))
