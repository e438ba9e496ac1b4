"""Keys, values and their gradients of the one layer that is being computed.

Stored token by token, (context, kv_heads, head_dim), so that any run of tokens is one piece of memory.
Gradients are fp32: tens of thousands of contributions are added to each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from engine.streaming.pinned import pinned_empty
from engine.streaming import copies
from engine.streaming.copies import CopyStreams


def _heads_first(x: Tensor) -> Tensor:
    """(n, kv_heads, head_dim) seen as (1, kv_heads, n, head_dim)."""
    return x.transpose(0, 1).unsqueeze(0)


def _tokens_first(x: Tensor) -> Tensor:
    """(1, kv_heads, n, head_dim) seen as (n, kv_heads, head_dim)."""
    return x.squeeze(0).transpose(0, 1)


class KeysValues(ABC):
    """A KeyValueSource (engine.attention.blockwise) over one layer, filled tile by tile."""

    @abstractmethod
    def append(self, start: int, k: Tensor, v: Tensor) -> None:
        """Stores k, v (1, kv_heads, tile, head_dim) of the tile that begins at `start`."""

    def destination(self, start: int, stop: int) -> tuple[Tensor, Tensor] | None:  # noqa: ARG002
        """Where keys and values of [start, stop) may be copied to, each (stop - start, kv_heads * head_dim)."""
        return None

    @abstractmethod
    def zero_gradients(self) -> None:
        """Begins the backward pass of a layer."""

    @abstractmethod
    def gradients(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """What later tiles added for positions [start, stop): dk, dv (1, kv_heads, stop - start, head_dim), fp32."""

    @abstractmethod
    def expect(self, ranges: Sequence[tuple[int, int]]) -> None:
        """See KeyValueSource."""

    @abstractmethod
    def keys_values(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """See KeyValueSource."""

    @abstractmethod
    def add_gradients(self, start: int, stop: int, dk: Tensor, dv: Tensor) -> None:
        """See KeyValueSource."""


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


class DeviceKeysValues(KeysValues):
    """All of it on the compute device: 2·n·Hkv·D·(2 + 4) bytes in bf16."""

    def __init__(self, context: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> None:
        shape = (context, kv_heads, head_dim)
        self._k, self._v = (torch.empty(shape, dtype=dtype, device=device) for _ in range(2))
        self._dk, self._dv = (torch.empty(shape, dtype=_wide(dtype), device=device) for _ in range(2))

    def append(self, start: int, k: Tensor, v: Tensor) -> None:
        """See KeysValues."""
        stop = start + k.shape[2]
        self._k[start:stop].copy_(_tokens_first(k))
        self._v[start:stop].copy_(_tokens_first(v))

    def destination(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """See KeysValues."""
        return self._k[start:stop].flatten(1), self._v[start:stop].flatten(1)

    def zero_gradients(self) -> None:
        """See KeysValues."""
        self._dk.zero_()
        self._dv.zero_()

    def gradients(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """See KeysValues."""
        return _heads_first(self._dk[start:stop]), _heads_first(self._dv[start:stop])

    def expect(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Nothing to fetch."""

    def keys_values(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """See KeysValues."""
        return _heads_first(self._k[start:stop]), _heads_first(self._v[start:stop])

    def add_gradients(self, start: int, stop: int, dk: Tensor, dv: Tensor) -> None:
        """See KeysValues."""
        self._dk[start:stop] += _tokens_first(dk)
        self._dv[start:stop] += _tokens_first(dv)


class HostKeysValues(KeysValues):
    """Pages in pinned host memory: GPU memory does not grow with the context.

    On the device are two pages of k, v and two of dk, dv, each of `page` tokens. While one block is computed the
    next is fetched; a block's gradients are fetched with it, added to, and written back.
    """

    def __init__(
        self,
        context: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        streams: CopyStreams,
        page: int,
    ) -> None:
        shape = (context, kv_heads, head_dim)
        page = min(page, context)
        self._streams = streams
        self._kv = [pinned_empty(shape, dtype) for _ in range(2)]
        self._grad = [pinned_empty(shape, _wide(dtype)) for _ in range(2)]
        slot_shape = (page, kv_heads, head_dim)
        self._kv_slots = [[torch.empty(slot_shape, dtype=dtype, device=device) for _ in range(2)] for _ in range(2)]
        self._grad_slots = [
            [torch.empty(slot_shape, dtype=_wide(dtype), device=device) for _ in range(2)] for _ in range(2)
        ]
        self._fetched: dict[tuple[int, int], tuple[int, torch.cuda.Event]] = {}
        self._queue: list[tuple[int, int]] = []
        self._turn = 0
        self._homed: list[torch.cuda.Event] = []
        self._backward = False

    def append(self, start: int, k: Tensor, v: Tensor) -> None:
        """See KeysValues."""
        self._backward = False
        self._homed = [
            copies.begin_copy(
                self._streams.to_host,
                [
                    (home[start : start + k.shape[2]], _tokens_first(value).contiguous())
                    for home, value in zip(self._kv, (k, v), strict=True)
                ],
            )
        ]

    def zero_gradients(self) -> None:
        """See KeysValues."""
        for event in self._homed:
            event.synchronize()
        for home in self._grad:
            home.zero_()
        self._backward = True

    def gradients(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """See KeysValues."""
        for event in self._homed:
            copies.wait_for(event)
        device = self._kv_slots[0][0].device
        dk, dv = (_heads_first(home[start:stop].to(device, non_blocking=True)) for home in self._grad)
        return dk, dv

    def expect(self, ranges: Sequence[tuple[int, int]]) -> None:
        """See KeysValues."""
        self._queue = list(ranges)
        self._fetched.clear()
        self._fetch_next()

    def _fetch_next(self) -> None:
        if not self._queue:
            return
        start, stop = key = self._queue.pop(0)
        slot, self._turn = self._turn, 1 - self._turn
        pairs = list(zip(self._kv_slots[slot], self._kv, strict=True))
        if self._backward:
            pairs += zip(self._grad_slots[slot], self._grad, strict=True)
        parts = [(on_device[: stop - start], home[start:stop]) for on_device, home in pairs]
        self._fetched[key] = slot, copies.begin_copy(self._streams.to_device, parts, self._homed)

    def keys_values(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """See KeysValues."""
        slot, arrived = self._fetched[(start, stop)]
        self._fetch_next()
        copies.wait_for(arrived)
        k, v = (_heads_first(x[: stop - start]) for x in self._kv_slots[slot])
        return k, v

    def add_gradients(self, start: int, stop: int, dk: Tensor, dv: Tensor) -> None:
        """See KeysValues."""
        slot, _ = self._fetched.pop((start, stop))
        sums = [x[: stop - start] for x in self._grad_slots[slot]]
        for total, value in zip(sums, (dk, dv), strict=True):
            total.add_(_tokens_first(value))
        pairs = [(home[start:stop], total) for home, total in zip(self._grad, sums, strict=True)]
        self._homed = [copies.begin_copy(self._streams.to_host, pairs)]
