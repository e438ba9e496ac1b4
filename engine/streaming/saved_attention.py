"""Saved attention outputs, which spare the backward pass of a streamed step to compute attention again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from engine.streaming.kv_cache import KvCache
from engine.streaming.tiles import TileArray, TileReader


class SavedAttention:
    """Saves the attention output and logsumexp of each layer, so that no pass recomputes attention.

    Saves keys and values too, where grouped heads or latents make both together no larger than the output. To fetch
    them is then less work than to project every tile again.

    Args:
        new_array: Makes an array of (width, dtype) in the home of the saved tensors.
        new_reader: Makes a reader of (width, dtype).
    """

    def __init__(
        self,
        new_array: Callable[[int, torch.dtype], TileArray],
        new_reader: Callable[[int, torch.dtype], TileReader],
    ) -> None:
        self._new_array, self._new_reader = new_array, new_reader
        self._arrays: dict[int, tuple[TileArray, TileArray]] = {}
        self._keys_values: dict[int, tuple[TileArray, TileArray]] = {}
        self._readers: dict[tuple[int, torch.dtype, bool], TileReader] = {}
        self._heads: dict[int, int] = {}

    def write(self, layer: int, tile: int, out: Tensor, logsumexp: Tensor) -> None:
        """Saves out (1, heads, tile, head_dim) and logsumexp (1, heads, tile)."""
        rows = out[0].transpose(0, 1).flatten(1)
        sums = logsumexp[0].T.contiguous()
        if layer not in self._arrays:
            self._arrays[layer] = (
                self._new_array(rows.shape[1], rows.dtype),
                self._new_array(sums.shape[1], sums.dtype),
            )
            self._heads[layer] = sums.shape[1]
        for array, value in zip(self._arrays[layer], (rows, sums), strict=True):
            array.write(tile, value)

    def write_kv(self, layer: int, tile: int, k: Tensor, v: Tensor, *, output: int) -> None:
        """Saves k, v, each (1, kv_heads, tile, width), where a token has no more of them than of attention output.

        Args:
            layer: Number of the layer.
            tile: Number of the tile.
            k, v: Keys and values, or latents.
            output: Values of a token's attention output.
        """
        widths = [x.shape[1] * x.shape[3] for x in (k, v)]
        if sum(widths) > output:
            return
        if layer not in self._keys_values:
            keys, values = (self._new_array(width, k.dtype) for width in widths)
            self._keys_values[layer] = keys, values
        for array, value, width in zip(self._keys_values[layer], (k, v), widths, strict=True):
            array.write(tile, value[0].transpose(0, 1).reshape(-1, width))

    def restore_kv(self, layer: int, spans: Sequence[slice], store: KvCache) -> bool:
        """Fetches a whole layer's keys and values into the KV cache; returns whether they were saved."""
        if layer not in self._keys_values:
            return False
        for tile, span in enumerate(spans):
            places = store.destination(span.start, span.stop)
            if places is None:
                return False
            for array, place in zip(self._keys_values[layer], places, strict=True):
                arrived = array.begin_load(tile, place)()
                if arrived.data_ptr() != place.data_ptr():
                    place.copy_(arrived)
        return True

    def keeps_kv(self, layer: int) -> bool:
        """Whether a layer's keys and values are saved."""
        return layer in self._keys_values

    def prefetch_kv(self, layer: int, tile: int) -> None:
        """Starts to fetch the tile for `read_kv`."""
        for array in self._keys_values[layer]:
            self._reader(array, keys=True).prefetch(array, tile)

    def read_kv(self, layer: int, tile: int, kv_heads: int) -> tuple[Tensor, Tensor]:
        """Returns the saved k, v of a tile, (1, kv_heads, tile, head_dim); valid until the next tile is fetched."""
        self.prefetch_kv(layer, tile)
        rows = [self._reader(array, keys=True).read(array, tile) for array in self._keys_values[layer]]
        k, v = (x.view(x.shape[0], kv_heads, -1).transpose(0, 1).unsqueeze(0) for x in rows)
        return k, v

    def prefetch(self, layer: int, tile: int) -> None:
        """Starts to fetch the tile for `read`."""
        for array in self._arrays.get(layer, ()):
            self._reader(array).prefetch(array, tile)

    def read(self, layer: int, tile: int) -> tuple[Tensor, Tensor]:
        """Returns the out (1, heads, tile, head_dim) and logsumexp (1, heads, tile) of a tile."""
        rows, sums = (self._reader(array).read(array, tile) for array in self._arrays[layer])
        out = rows.view(rows.shape[0], self._heads[layer], -1).transpose(0, 1).unsqueeze(0)
        return out, sums.T.contiguous().unsqueeze(0)

    def _reader(self, array: TileArray, *, keys: bool = False) -> TileReader:
        """Returns an array's reader; keys and values have their own, because they are fetched for another tile."""
        key = (array.width, array.dtype, keys)
        if key not in self._readers:
            self._readers[key] = self._new_reader(array.width, array.dtype)
        return self._readers[key]

    def _all_arrays(self) -> list[TileArray]:
        return [array for pair in (*self._arrays.values(), *self._keys_values.values()) for array in pair]

    def begin(self, rows: int) -> None:
        """Prepares for a sequence of `rows` tokens."""
        for array in self._all_arrays():
            array.rows = rows
        for reader in self._readers.values():
            reader.reset()

    def close(self) -> None:
        """Releases the arrays."""
        for array in self._all_arrays():
            array.close()
        self._arrays.clear()
        self._keys_values.clear()
