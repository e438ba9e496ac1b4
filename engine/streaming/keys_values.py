"""Keys, values and their gradients of the one layer that is being computed.

Stored token by token, (context, kv_heads, head_dim), so that any run of tokens is one piece of memory.
Gradients are fp32: tens of thousands of contributions are added to each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from engine.streaming.tiles import CopyStreams


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
        self._kv = [torch.empty(shape, dtype=dtype, pin_memory=True) for _ in range(2)]
        self._grad = [torch.empty(shape, dtype=_wide(dtype), pin_memory=True) for _ in range(2)]
        slot_shape = (page, kv_heads, head_dim)
        self._kv_slots = [[torch.empty(slot_shape, dtype=dtype, device=device) for _ in range(2)] for _ in range(2)]
        self._grad_slots = [
            [torch.empty(slot_shape, dtype=_wide(dtype), device=device) for _ in range(2)] for _ in range(2)
        ]
        self._fetched: dict[tuple[int, int], tuple[int, torch.cuda.Event]] = {}
        self._queue: list[tuple[int, int]] = []
        self._turn = 0
        self._backward = False

    def append(self, start: int, k: Tensor, v: Tensor) -> None:
        """See KeysValues."""
        self._backward = False
        stream = self._streams.to_host
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for home, value in zip(self._kv, (k, v), strict=True):
                # Contiguous first: a strided device-to-host copy is made of one transfer a row.
                page = _tokens_first(value).contiguous()
                home[start : start + k.shape[2]].copy_(page, non_blocking=True)
                value.record_stream(stream)

    def zero_gradients(self) -> None:
        """See KeysValues."""
        self._streams.to_host.synchronize()
        for home in self._grad:
            home.zero_()
        self._backward = True

    def gradients(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """See KeysValues."""
        current = torch.cuda.current_stream()
        current.wait_stream(self._streams.to_host)
        device = self._kv_slots[0][0].device
        dk, dv = (_heads_first(home[start:stop].to(device, non_blocking=True)) for home in self._grad)
        return dk, dv

    def expect(self, ranges: Sequence[tuple[int, int]]) -> None:
        """See KeysValues."""
        self._queue = list(ranges)
        self._fetched.clear()
        # All that earlier tiles appended or added has to be home first.
        self._streams.to_device.wait_stream(self._streams.to_host)
        self._fetch_next()

    def _fetch_next(self) -> None:
        if not self._queue:
            return
        start, stop = key = self._queue.pop(0)
        slot, self._turn = self._turn, 1 - self._turn
        stream = self._streams.to_device
        stream.wait_stream(torch.cuda.current_stream())  # the slot's last user
        stream.wait_stream(self._streams.to_host)  # its gradients' way home
        pairs = list(zip(self._kv_slots[slot], self._kv, strict=True))
        if self._backward:
            pairs += zip(self._grad_slots[slot], self._grad, strict=True)
        with torch.cuda.stream(stream):
            for on_device, home in pairs:
                on_device[: stop - start].copy_(home[start:stop], non_blocking=True)
            self._fetched[key] = (slot, stream.record_event())

    def keys_values(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """See KeysValues."""
        slot, arrived = self._fetched[(start, stop)]
        self._fetch_next()
        torch.cuda.current_stream().wait_event(arrived)
        k, v = (_heads_first(x[: stop - start]) for x in self._kv_slots[slot])
        return k, v

    def add_gradients(self, start: int, stop: int, dk: Tensor, dv: Tensor) -> None:
        """See KeysValues."""
        slot, _ = self._fetched.pop((start, stop))
        sums = [x[: stop - start] for x in self._grad_slots[slot]]
        for total, value in zip(sums, (dk, dv), strict=True):
            total.add_(_tokens_first(value))
        stream = self._streams.to_host
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for home, total in zip(self._grad, sums, strict=True):
                home[start:stop].copy_(total, non_blocking=True)
