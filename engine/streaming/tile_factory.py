"""Makes the arrays of a step in the home that its plan names."""

from __future__ import annotations

from pathlib import Path

import torch

from engine.errors.planning import StreamPlanError
from engine.plan.stream_plan import Home
from engine.streaming.copies import CopyStreams
from engine.streaming.disk_tiles import DiskStaging, DiskTiles
from engine.streaming.tiles import DeviceTiles, PinnedTiles, TileArray


class TileFactory:
    """Makes arrays in one home.

    Args:
        home: "gpu" keeps them on the compute device.
        device: The compute device; on a CPU "gpu" and "host" are the same.
        streams: Side streams of a CUDA device, None on a CPU.
        directory: Directory of the files of the home "disk".

    Raises:
        StreamPlanError: the home is "disk", and there is no directory.
    """

    def __init__(self, home: Home, device: torch.device, streams: CopyStreams | None, directory: Path | None) -> None:
        if home == "disk" and directory is None:
            raise StreamPlanError("a home on disk needs a directory for its files")
        self.home, self.device, self._streams, self._directory = home, device, streams, directory
        self._staging: DiskStaging | None = None

    def array(self, rows: int, width: int, dtype: torch.dtype, tile: int) -> TileArray:
        """Makes an array of (rows, width) in tiles of `tile` rows, with undefined contents.

        Raises:
            MemoryError, torch.OutOfMemoryError, OSError: the home has no room for it.
        """
        if self.home == "disk":
            assert self._directory is not None
            if self._staging is None:
                self._staging = DiskStaging(self._streams)
            return DiskTiles(rows, width, dtype, tile, self._directory, self._staging)
        if self.home == "host" and self._streams is not None:
            return PinnedTiles(rows, width, dtype, tile, self._streams)
        return DeviceTiles(rows, width, dtype, tile, self.device)

    def release(self) -> None:
        """Frees the buffers that the arrays share. The arrays must be closed before."""
        if self._staging is not None:
            self._staging.close()
            self._staging = None
