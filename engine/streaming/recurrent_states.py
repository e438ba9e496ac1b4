"""Stores the states of the recurrent layers at the tiles' borders, in the home of the hidden states."""

from __future__ import annotations

from collections.abc import Callable

import torch

from engine.streaming.mixer_cache import States
from engine.streaming.tiles import TileArray, TileReader

_Key = tuple[int, int]
"""Layer, and number of a recurrent mixer in it."""
_Name = tuple[_Key, tuple[str, int]]
"""A mixer, and kind and number of one of its states."""


class BorderStates:
    """The states at every tile's start, one row a tile for each state of each mixer.

    Args:
        new_array: Makes an array of (tiles, width) with one row a tile for (width, dtype).
        new_reader: Makes a reader of such arrays for (width, dtype).
    """

    def __init__(
        self,
        new_array: Callable[[int, torch.dtype], TileArray],
        new_reader: Callable[[int, torch.dtype], TileReader],
    ) -> None:
        self._new_array, self._new_reader = new_array, new_reader
        self._arrays: dict[_Name, TileArray] = {}
        self._shapes: dict[_Name, torch.Size] = {}
        self._readers: dict[tuple[int, str, int, int, torch.dtype], TileReader] = {}
        self._tiles = 0

    def begin(self, tiles: int) -> None:
        """Prepares for a sequence of so many tiles."""
        self._tiles = tiles
        for array in self._arrays.values():
            array.rows = tiles
        for reader in self._readers.values():
            reader.reset()

    def write(self, key: _Key, tile: int, states: States) -> None:
        """Stores the states at a tile's start; they may be freed at once, but not overwritten."""
        for kind, state in states.items():
            name = key, kind
            if name not in self._arrays:
                self._arrays[name] = self._new_array(state.numel(), state.dtype)
                self._arrays[name].rows = self._tiles
            self._shapes[name] = state.shape
            self._arrays[name].write(tile, state.reshape(1, -1))

    def _of(self, key: _Key) -> list[_Name]:
        return [name for name in self._arrays if name[0] == key]

    def prefetch(self, key: _Key, tile: int) -> None:
        """Starts to fetch the states at a tile's start."""
        for name in self._of(key):
            self._reader(name).prefetch(self._arrays[name], tile)

    def read(self, key: _Key, tile: int) -> States:
        """Returns the states at a tile's start, on the compute device; valid until the mixer's next are read."""
        return {
            name[1]: self._reader(name).read(self._arrays[name], tile).view(self._shapes[name])
            for name in self._of(key)
        }

    def _reader(self, name: _Name) -> TileReader:
        """Returns the reader of a state, shared by the layers."""
        array, ((_, number), kind) = self._arrays[name], name
        key = (number, *kind, array.width, array.dtype)
        if key not in self._readers:
            self._readers[key] = self._new_reader(array.width, array.dtype)
        return self._readers[key]

    @property
    def stored_bytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.capacity * array.width * array.dtype.itemsize for array in self._arrays.values())

    def close(self) -> None:
        """Releases the arrays."""
        for array in self._arrays.values():
            array.close()
        self._arrays.clear()
        self._shapes.clear()
        self._readers.clear()
