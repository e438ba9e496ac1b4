"""KV cache of the one layer that is being computed, with the gradients of its keys and values.

Stored tokens first, (context, kv_heads, width), so that any run of tokens is contiguous in memory. A layer that
compresses its keys and values stores two latents in their place (engine/streaming/latent_attention.py).
Gradients are fp32, because each is a sum of tens of thousands of terms.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from engine.hardware.pinned_memory import pinned_empty
from engine.streaming import copies
from engine.streaming.copies import CopyStreams


def _heads_first(x: Tensor) -> Tensor:
    """Views (n, kv_heads, head_dim) as (1, kv_heads, n, head_dim)."""
    return x.transpose(0, 1).unsqueeze(0)


def _tokens_first(x: Tensor) -> Tensor:
    """Views (1, kv_heads, n, head_dim) as (n, kv_heads, head_dim)."""
    return x.squeeze(0).transpose(0, 1)


@dataclass(frozen=True, kw_only=True)
class KvShape:
    """Shape and dtype of a layer's keys and values."""

    kv_heads: int
    key_dim: int
    value_dim: int
    dtype: torch.dtype

    @classmethod
    def of(cls, k: Tensor, v: Tensor) -> KvShape:
        """Reads k (1, kv_heads, n, key_dim) and v (1, kv_heads, n, value_dim)."""
        return cls(kv_heads=k.shape[1], key_dim=k.shape[3], value_dim=v.shape[3], dtype=k.dtype)

    def rows(self, tokens: int) -> list[tuple[int, int, int]]:
        """Lists the shapes of the keys and the values of so many tokens."""
        return [(tokens, self.kv_heads, width) for width in (self.key_dim, self.value_dim)]

    @property
    def wide(self) -> torch.dtype:
        """Dtype of the gradients, fp32 or wider."""
        return torch.promote_types(self.dtype, torch.float32)


class KvCache(ABC):
    """A KeyValueSource (engine.attention.blockwise) over one layer, filled tile by tile."""

    takes_saved = True
    "Whether saved keys and values come back into it; if not, the layer computes them again."

    @abstractmethod
    def append(self, start: int, k: Tensor, v: Tensor) -> None:
        """Stores k, v (1, kv_heads, tile, head_dim) of the tile that begins at `start`."""

    def destination(self, start: int, stop: int) -> tuple[Tensor, Tensor] | None:  # noqa: ARG002
        """Returns views to copy keys and values of [start, stop) into, each (stop - start, kv_heads * head_dim).

        None where the cache has no such views.
        """
        return None

    @abstractmethod
    def zero_gradients(self) -> None:
        """Begins the backward pass of a layer."""

    @abstractmethod
    def gradients(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Returns the gradients that later tiles added at positions [start, stop).

        dk and dv are each (1, kv_heads, stop - start, head_dim), fp32 or wider.
        """

    @abstractmethod
    def expect(self, ranges: Sequence[tuple[int, int]]) -> None:
        """See KeyValueSource."""

    @abstractmethod
    def kv_cache(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """See KeyValueSource."""

    @abstractmethod
    def add_gradients(self, start: int, stop: int, dk: Tensor, dv: Tensor) -> None:
        """See KeyValueSource."""


class DeviceKvCache(KvCache):
    """Keeps the whole cache on the compute device, 2·n·Hkv·D·(2 + 4) bytes in bf16."""

    def __init__(self, context: int, shape: KvShape, device: torch.device) -> None:
        rows = shape.rows(context)
        self._k, self._v = (torch.empty(each, dtype=shape.dtype, device=device) for each in rows)
        self._dk, self._dv = (torch.empty(each, dtype=shape.wide, device=device) for each in rows)

    def append(self, start: int, k: Tensor, v: Tensor) -> None:
        """See KvCache."""
        stop = start + k.shape[2]
        self._k[start:stop].copy_(_tokens_first(k))
        self._v[start:stop].copy_(_tokens_first(v))

    def destination(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """See KvCache."""
        return self._k[start:stop].flatten(1), self._v[start:stop].flatten(1)

    def zero_gradients(self) -> None:
        """See KvCache."""
        self._dk.zero_()
        self._dv.zero_()

    def gradients(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """See KvCache."""
        return _heads_first(self._dk[start:stop]), _heads_first(self._dv[start:stop])

    def expect(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Does nothing, because the cache is resident."""

    def kv_cache(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """See KvCache."""
        return _heads_first(self._k[start:stop]), _heads_first(self._v[start:stop])

    def add_gradients(self, start: int, stop: int, dk: Tensor, dv: Tensor) -> None:
        """See KvCache."""
        self._dk[start:stop] += _tokens_first(dk)
        self._dv[start:stop] += _tokens_first(dv)


class _Page:
    """Buffers for one page on the device, for keys, values and their gradients.

    Args:
        tokens: Most tokens.
        shape: Shape of keys and values.
        device: The compute device.
    """

    def __init__(self, tokens: int, shape: KvShape, device: torch.device) -> None:
        rows = shape.rows(tokens)
        self.kv_cache = [torch.empty(each, dtype=shape.dtype, device=device) for each in rows]
        self.gradients = [torch.empty(each, dtype=shape.wide, device=device) for each in rows]
        self.number = -1
        self.rows = slice(0, 0)
        "Positions of the page's tokens."
        self.arrived: torch.cuda.Event | None = None
        self.changed = False
        "Whether gradients were added that are not on the host yet."


class HostKvCache(KvCache):
    """Offloads pages to pinned host memory, so that GPU memory does not grow with the context.

    A page is an aligned run of `page` tokens. The device has room for two pages. While attention reads one, the next is
    fetched. Any number of mask tiles may read a resident page and add to its gradients. Its gradients are then copied
    to the host once, before they are fetched again.

    Args:
        context: Most tokens.
        shape: Shape of keys and values.
        device: The compute device.
        streams: Side streams of the device.
        page: Tokens of a page, the `key_block` of the mask tiles that read it (engine/attention/mask_tiles.py).
    """

    takes_saved = False  # they would come from the host by way of the device, and take as much room there again

    def __init__(
        self,
        context: int,
        shape: KvShape,
        device: torch.device,
        streams: CopyStreams,
        page: int,
    ) -> None:
        rows = shape.rows(context)
        self._context, self._page, self._device, self._streams = context, page, device, streams
        self._kv = [pinned_empty(each, shape.dtype) for each in rows]
        self._grad = [pinned_empty(each, shape.wide) for each in rows]
        self._room = [_Page(min(page, context), shape, device) for _ in range(2)]
        self._visits: deque[int] = deque()
        "Pages to read after the next one, in order."
        self._present: _Page | None = None
        self._next: _Page | None = None
        self._homed: list[torch.cuda.Event] = []
        "Event of the last copy to the host, which follows all earlier ones; empty before the first."
        self._summed: set[int] = set()
        "Pages with gradients of this layer on the host; those of other pages are zero."
        self._backward = False

    def append(self, start: int, k: Tensor, v: Tensor) -> None:
        """See KvCache."""
        self._forget()
        self._backward = False
        rows = slice(start, start + k.shape[2])
        # Made contiguous first, because a strided device-to-host copy makes one transfer a row.
        values = (_tokens_first(x.detach()).contiguous() for x in (k, v))
        self._copy_home([(home[rows], value) for home, value in zip(self._kv, values, strict=True)])

    def zero_gradients(self) -> None:
        """See KvCache. Writes nothing; gradients are zeroed at their first use."""
        self._forget()
        self._summed.clear()
        self._backward = True

    def gradients(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """See KvCache."""
        self._send_gradients_home()
        shapes = [(stop - start, *home.shape[1:]) for home in self._grad]
        found = [
            torch.zeros(shape, dtype=home.dtype, device=self._device)
            for shape, home in zip(shapes, self._grad, strict=True)
        ]
        pairs: list[tuple[Tensor, Tensor]] = []
        for number in range(start // self._page, -(-stop // self._page)):
            if number in self._summed:
                first, last = max(start, number * self._page), min(stop, (number + 1) * self._page)
                parts = [x[first - start : last - start] for x in found]
                pairs += zip(parts, (home[first:last] for home in self._grad), strict=True)
        if pairs:
            copies.wait_for(copies.begin_copy(self._streams.to_device, pairs, self._homed))
        return _heads_first(found[0]), _heads_first(found[1])

    def expect(self, ranges: Sequence[tuple[int, int]]) -> None:
        """See KeyValueSource. Each range must lie within a page."""
        self._send_gradients_home()
        self._forget()
        self._visits.extend(number for number, _ in groupby(start // self._page for start, _ in ranges))
        self._fetch_next()

    def kv_cache(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """See KvCache."""
        page = self._enter(start, stop)
        rows = slice(start - page.rows.start, stop - page.rows.start)
        k, v = (_heads_first(x[rows]) for x in page.kv_cache)
        return k, v

    def add_gradients(self, start: int, stop: int, dk: Tensor, dv: Tensor) -> None:
        """See KvCache."""
        page = self._enter(start, stop)
        rows = slice(start - page.rows.start, stop - page.rows.start)
        for total, value in zip(page.gradients, (dk, dv), strict=True):
            total[rows] += _tokens_first(value)
        page.changed = True

    def _enter(self, start: int, stop: int) -> _Page:
        """Returns the page of a range, which is the present one or the next.

        Raises:
            RuntimeError: the range is in another page, or spans two.
        """
        number = start // self._page
        if self._present is None or self._present.number != number:
            page = self._next
            if page is None or page.number != number:
                raise RuntimeError(f"keys {start} to {stop} are not the next that were announced")
            assert page.arrived is not None
            copies.wait_for(page.arrived)
            if self._backward and number not in self._summed:
                for total in page.gradients:
                    total.zero_()
            self._present, self._next = page, None
            self._fetch_next()
        if stop > self._present.rows.stop:
            raise RuntimeError(f"keys {start} to {stop} are not within a page of {self._page}")
        return self._present

    def _fetch_next(self) -> None:
        """Starts to fetch the next page into the buffers of the page before the present one."""
        if not self._visits:
            return
        page = self._room[1 if self._present is self._room[0] else 0]
        self._send_gradients_home(page)
        page.number = self._visits.popleft()
        page.rows = slice(page.number * self._page, min((page.number + 1) * self._page, self._context))
        pairs = list(zip(page.kv_cache, self._kv, strict=True))
        if self._backward and page.number in self._summed:
            pairs += zip(page.gradients, self._grad, strict=True)
        tokens = page.rows.stop - page.rows.start
        parts = [(there[:tokens], home[page.rows]) for there, home in pairs]
        page.arrived = copies.begin_copy(self._streams.to_device, parts, self._homed)
        self._next = page

    def _send_gradients_home(self, *pages: _Page) -> None:
        """Copies the changed gradients of these pages, or of both, to the host."""
        for page in pages or self._room:
            if page.changed:
                tokens = page.rows.stop - page.rows.start
                pairs = zip(self._grad, page.gradients, strict=True)
                self._copy_home([(home[page.rows], there[:tokens]) for home, there in pairs])
                self._summed.add(page.number)
                page.changed = False

    def _copy_home(self, pairs: list[tuple[Tensor, Tensor]]) -> None:
        self._homed = [copies.begin_copy(self._streams.to_host, pairs)]

    def _forget(self) -> None:
        """Invalidates the pages on the device."""
        self._visits.clear()
        self._present = self._next = None
        for page in self._room:
            page.number, page.changed = -1, False
