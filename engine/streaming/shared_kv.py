"""Keys and values of one attention layer that later layers attend to as well (Gemma 3n, Gemma 4 E2B and E4B).

    forward   the owner keeps its keys and values in a cache of its own until the step's end; readers attend to them
    backward  readers come first, and each adds to the gradients of all its keys and values, those of its own tile
              included; the owner's tiles then take the sums, as they take those of its own later tiles

The cache holds every token, also where the layers attend through a window: each reader goes through all tiles.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.streaming.kv_cache import DeviceKvCache, KvCache


class SharedKv:
    """The keys and values of one layer, and their gradients, in one sequence.

    Args:
        names: Under which transformers' layers find them: the type of the layers, or the owner's number (Gemma 3n
            before 5.23).
        page: Tokens of the aligned runs that the cache serves at once.
    """

    def __init__(self, names: tuple[str | int, ...], page: int) -> None:
        self.names, self._page = names, page
        self._cache: KvCache | None = None
        self._sums = False

    @property
    def cache(self) -> KvCache:
        """The cache; only after the owner's forward pass has begun."""
        assert self._cache is not None
        return self._cache

    def keep(self, cache: KvCache) -> None:
        """Takes the cache that the owner fills."""
        self._cache = cache

    def begin_backward(self) -> None:
        """Begins the backward pass of a reader or of the owner; gradients are zero before the first."""
        if not self._sums:
            self.cache.zero_gradients()
            self._sums = True

    def tile(self, span: slice) -> tuple[Tensor, Tensor]:
        """Returns k, v of a tile's tokens, each (1, kv_heads, tile, width)."""
        parts = self._announced(span)
        # The pages that the tile then attends to, or that later layers do, take the buffers of these.
        paged = not isinstance(self.cache, DeviceKvCache)
        found = [[x.clone() if paged else x for x in self.cache.kv_cache(*part)] for part in parts]
        k, v = (torch.cat(each, 2) if len(each) > 1 else each[0] for each in zip(*found, strict=True))
        return k, v

    def add_gradients(self, start: int, dk: Tensor, dv: Tensor) -> None:
        """Adds dk, dv, each (1, kv_heads, tile, width), to the gradients of the tokens from `start` on."""
        for first, last in self._announced(slice(start, start + dk.shape[2])):
            rows = slice(first - start, last - start)
            self.cache.add_gradients(first, last, dk[:, :, rows], dv[:, :, rows])

    def release(self) -> None:
        """Drops the cache."""
        self._cache = None

    def _announced(self, span: slice) -> list[tuple[int, int]]:
        page = self._page
        starts = [span.start, *range((span.start // page + 1) * page, span.stop, page)]
        parts = list(zip(starts, [*starts[1:], span.stop], strict=True))
        self.cache.expect(parts)
        return parts
