"""Paged KV cache of one sequence, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.hardware.pinned_memory import pinned_empty


class PagedKvCache:
    """A KeyValueReader (engine.attention.blockwise) of one layer that grows to a known length.

    A page is (tokens, kv_heads, head_dim). Attention mostly asks for ranges that do not cross a multiple of `page`
    (engine.attention.mask_tiles). Those are returned as views; other ranges are concatenated.

    Args:
        capacity: Maximum number of tokens.
        page: Tokens per page.
        home: Device of the pages; pinned memory if it is the host of a GPU.
        device: Device that computes attention.
    """

    def __init__(self, capacity: int, page: int, home: torch.device, device: torch.device) -> None:
        self._capacity, self._page, self._home, self._device = capacity, page, home, device
        self._pages: list[tuple[Tensor, Tensor]] = []

    def append(self, start: int, k: Tensor, v: Tensor) -> None:
        """Stores k, v (1, kv_heads, tile, head_dim) of the tokens from position `start` on."""
        stop, at = start + k.shape[2], start
        while at < stop:
            number, offset = divmod(at, self._page)
            if number == len(self._pages):
                self._pages.append((self._new_page(number, k), self._new_page(number, v)))
            end = min(stop, (number + 1) * self._page)
            for page, values in zip(self._pages[number], (k, v), strict=True):
                rows = values[0, :, at - start : end - start].transpose(0, 1)
                page[offset : offset + end - at].copy_(rows.contiguous(), non_blocking=True)
            at = end

    def _new_page(self, number: int, like: Tensor) -> Tensor:
        shape = (min(self._page, self._capacity - number * self._page), like.shape[1], like.shape[3])
        if self._home.type == "cpu" and self._device.type == "cuda":
            return pinned_empty(shape, like.dtype)
        return torch.empty(shape, dtype=like.dtype, device=self._home)

    def expect(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Does nothing: pages are fetched on demand, on the compute stream."""

    def kv_cache(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """See KeyValueReader. Shapes (1, kv_heads, stop - start, head_dim)."""
        parts: tuple[list[Tensor], list[Tensor]] = [], []
        at = start
        while at < stop:
            number, offset = divmod(at, self._page)
            end = min(stop, (number + 1) * self._page)
            for found, page in zip(parts, self._pages[number], strict=True):
                found.append(page[offset : offset + end - at].to(self._device, non_blocking=True))
            at = end
        k, v = (found[0] if len(found) == 1 else torch.cat(found) for found in parts)
        return k.transpose(0, 1).unsqueeze(0), v.transpose(0, 1).unsqueeze(0)
