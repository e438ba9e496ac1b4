"""KV cache of a layer with a sliding window, with gradients, as a ring buffer on the compute device.

Its size depends on the window and the tile, not on the context. In the forward pass each tile overwrites the tile that
no later query sees. In the backward pass tiles are restored from the last one down, each just ahead of the first tile
that reads it. Their gradients start from zero, and are complete when the backward pass reaches the tile itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - PyTorch's own name for it

from engine.plan.window_ring import WindowRing
from engine.streaming.kv_cache import KvCache, KvShape


class WindowedKvCache(KvCache):
    """Holds the last `ring.kept` tokens of each of the `ring.places` newest tiles.

    It takes 2·rows·Hkv·D·(2 + 4) bytes in bf16.

    Args:
        ring: Ring of the layer's window and the step's tile.
        shape: Shape of keys and values.
        device: The compute device.
    """

    def __init__(self, ring: WindowRing, shape: KvShape, device: torch.device) -> None:
        self.ring, self.kv_heads = ring, shape.kv_heads
        rows = shape.rows(ring.rows)
        self._k, self._v = (torch.empty(each, dtype=shape.dtype, device=device) for each in rows)
        self._dk, self._dv = (torch.empty(each, dtype=shape.wide, device=device) for each in rows)
        self._held: list[int | None] = [None] * ring.places

    def append(self, start: int, k: Tensor, v: Tensor) -> None:
        """See KvCache. The tile overwrites an older one, or a later one in the backward pass."""
        tile, ring = start // self.ring.tile, self.ring
        place = tile % ring.places
        rows, skipped = self._own(start, start + k.shape[2])
        for home, value in ((self._k, k), (self._v, v)):
            home[rows].copy_(value[0, :, skipped:].transpose(0, 1))
        for gradient in (self._dk, self._dv):
            gradient[place * ring.kept : (place + 1) * ring.kept].zero_()
        self._held[place] = tile

    def zero_gradients(self) -> None:
        """See KvCache. Also evicts every tile; tiles are restored as they are needed."""
        self._dk.zero_()
        self._dv.zero_()
        self._held = [None] * self.ring.places

    def gradients(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """See KvCache. Tokens outside the windows of all later tiles have zero gradients."""
        rows, skipped = self._own(start, stop)
        dk, dv = (F.pad(_heads_first(home[rows]), (0, 0, skipped, 0)) for home in (self._dk, self._dv))
        return dk, dv

    def expect(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Does nothing, because the ring is resident."""

    def kv_cache(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """See KvCache. Copies only where the range wraps around the ring's end."""
        parts = self._rows(start, stop)
        k, v = (
            _heads_first(home[parts[0]] if len(parts) == 1 else torch.cat([home[part] for part in parts]))
            for home in (self._k, self._v)
        )
        return k, v

    def add_gradients(self, start: int, stop: int, dk: Tensor, dv: Tensor) -> None:
        """See KvCache."""
        for home, value in ((self._dk, dk), (self._dv, dv)):
            first = 0
            for part in self._rows(start, stop):
                length = part.stop - part.start
                home[part] += value[0, :, first : first + length].transpose(0, 1)
                first += length

    def _own(self, start: int, stop: int) -> tuple[slice, int]:
        """Returns the ring rows of the tile [start, stop), and the number of its first tokens that are not kept."""
        ring = self.ring
        tile = start // ring.tile
        first = (tile + 1) * ring.tile - ring.kept  # of a whole tile; the context's last one may be shorter
        offset = tile % ring.places * ring.kept - first
        begin = min(max(start, first), stop)
        return slice(begin + offset, stop + offset) if begin < stop else slice(0, 0), begin - start

    def _rows(self, start: int, stop: int) -> list[slice]:
        """Returns the ring rows of the positions [start, stop), in order, as one slice, or two where they wrap around.

        Raises:
            RuntimeError: a position is not held. Its row belongs to another token.
        """
        ring, parts = self.ring, []  # type: WindowRing, list[slice]
        for tile in range(start // ring.tile, (stop - 1) // ring.tile + 1):
            first = (tile + 1) * ring.tile - ring.kept
            begin, end = max(start, tile * ring.tile), min(stop, (tile + 1) * ring.tile)
            place = tile % ring.places
            if begin < first or self._held[place] != tile:
                raise RuntimeError(
                    f"keys {begin:,} to {end:,} are not in the ring of a window of {ring.window:,}: "
                    "the layer's window is not the one that it was made for"
                )
            rows = slice(begin - first + place * ring.kept, end - first + place * ring.kept)
            if parts and parts[-1].stop == rows.start:
                rows = slice(parts.pop().start, rows.stop)
            parts.append(rows)
        return parts


def _heads_first(x: Tensor) -> Tensor:
    """Views (n, kv_heads, head_dim) as (1, kv_heads, n, head_dim)."""
    return x.transpose(0, 1).unsqueeze(0)
