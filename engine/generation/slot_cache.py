"""KV caches and recurrent states of several sequences at fixed addresses, one row each, for batched decoding.

CUDA graphs read and write the addresses that they were captured with, so rows are allocated once for the longest
sequence. A row is filled tile by tile (`RowStore`), then token by token together with the other rows (`append`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from engine.streaming.mixer_cache import States


class SlotCache:
    """Caches of all layers.

    Args:
        rows: Number of sequences.
        capacity: Maximum tokens of each.
        device: Device of the caches.
    """

    def __init__(self, rows: int, capacity: int, device: torch.device) -> None:
        self.rows, self.capacity, self._device = rows, capacity, device
        self._kv: dict[int, tuple[Tensor, Tensor]] = {}
        self._states: dict[tuple[int, int], States] = {}
        self._numbers = torch.arange(rows, device=device)

    def kv(self, layer: int) -> tuple[Tensor, Tensor]:
        """Returns the keys and values of a layer, each (rows, capacity, kv_heads, head_dim)."""
        return self._kv[layer]

    def _allocated(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Allocates a layer for keys and values like k, v (batch, kv_heads, tokens, head_dim), unless it has been."""
        if layer not in self._kv:
            # Zeros, because a masked softmax multiplies unused values by 0, which would keep a NaN.
            shapes = [(self.rows, self.capacity, x.shape[1], x.shape[3]) for x in (k, v)]
            keys, values = (k.new_zeros(shape) for shape in shapes)
            self._kv[layer] = keys, values
        return self._kv[layer]

    def write(self, layer: int, row: int, start: int, k: Tensor, v: Tensor) -> None:
        """Stores k, v (1, kv_heads, tile, head_dim) of a row's tokens from position `start` on."""
        for cache, new in zip(self._allocated(layer, k, v), (k, v), strict=True):
            cache[row, start : start + new.shape[2]] = new[0].transpose(0, 1)

    def append(self, layer: int, positions: Tensor, k: Tensor, v: Tensor) -> None:
        """Stores k, v (batch, kv_heads, 1, head_dim) of the first rows' tokens at `positions`, (batch,) int64."""
        rows = self._numbers[: len(positions)]
        for cache, new in zip(self._allocated(layer, k, v), (k, v), strict=True):
            cache[rows, positions] = new[:, :, 0]

    def scatter(self, layer: int, rows: Tensor, positions: Tensor, k: Tensor, v: Tensor) -> None:
        """Stores k, v (1, kv_heads, tokens, head_dim) of tokens at `positions` of `rows`, both (tokens,) int64."""
        for cache, new in zip(self._allocated(layer, k, v), (k, v), strict=True):
            cache[rows, positions] = new[0].transpose(0, 1)

    # --- recurrent states -----------------------------------------------------------------------------------------

    def states(self, mixer: tuple[int, int], rows: int) -> States:
        """Returns a mixer's states of the first rows, as views; empty before any sequence has one."""
        return {name: state[:rows] for name, state in self._states.get(mixer, {}).items()}

    def keep_states(self, mixer: tuple[int, int], states: Mapping[tuple[str, int], Tensor], first: int = 0) -> None:
        """Copies states (batch, ...) of a mixer into the rows from `first` on."""
        kept = self._states.setdefault(mixer, {})
        for name, state in states.items():
            if name not in kept:
                kept[name] = state.new_zeros((self.rows, *state.shape[1:]))
            kept[name][first : first + len(state)].copy_(state)

    def snapshot(self) -> list[Tensor]:
        """Copies all recurrent states, each (rows, ...)."""
        return [state.clone() for states in self._states.values() for state in states.values()]

    def restore(self, snapshot: Sequence[Tensor]) -> None:
        """Writes a `snapshot` back; its tensors are each (rows, ...)."""
        kept = [state for states in self._states.values() for state in states.values()]
        for state, before in zip(kept, snapshot, strict=True):
            state.copy_(before)

    # --- rows -----------------------------------------------------------------------------------------------------

    def move(self, source: int, target: int, length: int) -> None:
        """Copies a row, of which `length` tokens are used, over another."""
        for caches in self._kv.values():
            for cache in caches:
                cache[target, :length] = cache[source, :length]
        for states in self._states.values():
            for state in states.values():
                state[target] = state[source]


class RowStore:
    """Keys and values of one layer and row, for tiles of its prompt (engine.generation.forward.KvStore)."""

    def __init__(self, cache: SlotCache, layer: int, row: int) -> None:
        self._cache, self._layer, self._row = cache, layer, row

    def append(self, start: int, k: Tensor, v: Tensor) -> None:
        """See KvStore."""
        self._cache.write(self._layer, self._row, start, k, v)

    def expect(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Does nothing: every key is on the device."""

    def kv_cache(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """See KeyValueReader. Views, (1, kv_heads, stop - start, head_dim)."""
        k, v = (cache[self._row, start:stop].transpose(0, 1).unsqueeze(0) for cache in self._cache.kv(self._layer))
        return k, v
