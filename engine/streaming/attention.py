"""The attention function that unmodified decoder layers call while a streamed step runs them tile by tile."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from engine.attention.backend import AttentionBackend
from engine.attention.blockwise import attend, attend_backward
from engine.attention.mask_tiles import Piece, causal_pieces
from engine.streaming.kv_cache import KvCache
from engine.streaming.tiles import TileArray, TileReader
from engine.streaming.windowed_kv_cache import WindowedKvCache

IMPLEMENTATION = "elite_streamed"
"""Name under which transformers finds the function."""


class Pass(Enum):
    """Purpose of a layer's run."""

    FORWARD = "compute outputs; keep keys and values, and the stash where there is one"
    EVALUATE = "compute outputs; keep keys and values for the layer's later tiles only"
    REPEAT = "compute outputs again from the stash, or as FORWARD where there is none"
    COLLECT = "keep keys and values only"
    GRADIENT = "compute outputs with a graph; keys and values are kept already"
    KEEP = "compute outputs for the first time, with a graph that the backward pass will find; a single tile"


class KvCollected(Exception):  # noqa: N818 - not an error: ends a layer early
    """Raised inside a layer in Pass.COLLECT once keys and values are kept, to skip the rest of the layer."""


class Stash:
    """Saves the attention output and logsumexp of each layer, so that no pass recomputes attention.

    Saves keys and values too, where grouped heads make both together no larger than the output. To fetch them is then
    less work than to project every tile again.

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

    def write_kv(self, layer: int, tile: int, q: Tensor, k: Tensor, v: Tensor) -> None:
        """Saves k, v (1, kv_heads, tile, head_dim), if the two are no larger than q (1, heads, tile, head_dim)."""
        if 2 * k.shape[1] > q.shape[1]:
            return
        width = k.shape[1] * k.shape[3]
        if layer not in self._keys_values:
            self._keys_values[layer] = self._new_array(width, k.dtype), self._new_array(width, k.dtype)
        for array, value in zip(self._keys_values[layer], (k, v), strict=True):
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


class TileAttention:
    """Computes the attention of the present layer and tile, and owns the KV caches.

    Args:
        backend: Kernel of one block.
        key_block: Most keys in one call of its backward, whose temporaries are as long as its keys.
        forward_key_block: Most keys in one call of its forward.
        new_keys_values: Makes the KV cache for (kv_heads, head_dim, dtype), when the first layer shows them.
        stash: Saves attention outputs between the passes; None to recompute attention.
        new_windowed: Makes the KV cache of layers with a window for (kv_heads, head_dim, dtype, window); returns None
            where it would be no smaller than that of a whole layer. Without it every layer has a whole cache.
    """

    def __init__(
        self,
        backend: AttentionBackend,
        key_block: int,
        forward_key_block: int,
        new_keys_values: Callable[[int, int, torch.dtype], KvCache],
        stash: Stash | None,
        new_windowed: Callable[[int, int, torch.dtype, int], WindowedKvCache | None] | None = None,
    ) -> None:
        self.backend, self.stash = backend, stash
        self.key_block, self._forward_key_block = key_block, forward_key_block
        self._new_keys_values, self._new_windowed = new_keys_values, new_windowed
        self._stores: dict[tuple[int, int, torch.dtype, int | None], KvCache] = {}
        self._windows: dict[int, int | None] = {}
        self._of_layer: dict[int, KvCache] = {}
        self.document_starts: Sequence[int] = (0,)
        self.lone = False
        "Whether the sequence is a single tile."
        self.layer = self.tile = self.start = 0
        self.purpose = Pass.FORWARD

    def begin_sequence(self, document_starts: Sequence[int], *, lone: bool) -> None:
        """Begins another sequence, whose forward pass shows each layer's window again."""
        self.document_starts, self.lone = document_starts, lone
        self._windows.clear()
        self._of_layer.clear()

    def begin(self, purpose: Pass, layer: int, tile: int, start: int) -> None:
        """Sets the pass, the layer and the tile of the next call of the attention function."""
        self.purpose, self.layer, self.tile, self.start = purpose, layer, tile, start

    def zero_gradients(self, layer: int) -> None:
        """Begins the backward pass of a layer."""
        if not self.lone:
            self._of_layer[layer].zero_gradients()

    def release(self) -> None:
        """Drops the KV caches and their gradients."""
        self._stores.clear()
        self._of_layer.clear()

    def store(self, k: Tensor) -> KvCache:
        """Returns the present layer's KV cache for keys like k (1, kv_heads, tile, head_dim); made on first use."""
        shape, window = (k.shape[1], k.shape[3], k.dtype), self._windows.get(self.layer)
        store = self._stores.get((*shape, window))
        if store is None and window is not None and self._new_windowed is not None:
            store = self._new_windowed(*shape, window)
        if store is None:
            whole = (*shape, None)
            if whole not in self._stores:
                self._stores[whole] = self._new_keys_values(*shape)
            store = self._stores[whole]
        self._stores[(*shape, window)] = self._of_layer[self.layer] = store
        return store

    def _see_window(self, window: int | None) -> None:
        """Checks that the present layer's window is the same in every pass of a sequence.

        Raises:
            RuntimeError: an earlier pass had another window. The KV cache may then lack keys that the layer sees.
        """
        if self._windows.setdefault(self.layer, window) != window:
            raise RuntimeError(
                f"layer {self.layer} attends through a window of {window} after one of {self._windows[self.layer]}"
            )

    # --- keys and values restored in the backward pass -------------------------------------------------------

    def reach(self, layer: int) -> int | None:
        """Counts the earlier tiles whose keys are restored just before a tile; None where all come first."""
        store = self._of_layer.get(layer)
        return store.ring.reach if isinstance(store, WindowedKvCache) else None

    def collects(self, layer: int) -> bool:
        """Whether keys are restored by recompute; otherwise `restore_below` fetches them."""
        return self.stash is None or not self.stash.keeps_kv(layer)

    def below(self, layer: int, tile: int, tiles: int) -> range:
        """Lists the tiles whose keys are restored just before this one, where tiles run down from the last."""
        reach = self.reach(layer) or 0
        lowest = tile - reach
        nearest = tile - 1 if tile == tiles - 1 else lowest  # the others were restored before a later tile
        return range(nearest, max(lowest, 0) - 1, -1) if reach else range(0)

    def restore_below(self, layer: int, tile: int, spans: Sequence[slice]) -> None:
        """Fetches the saved keys and values of the tiles `below` this one, and prefetches those of the next tile."""
        store = self._of_layer[layer]
        assert self.stash is not None
        assert isinstance(store, WindowedKvCache)
        for below in self.below(layer, tile, len(spans)):
            store.append(spans[below].start, *self.stash.read_kv(layer, below, store.kv_heads))
        for below in self.below(layer, tile - 1, len(spans)):
            self.stash.prefetch_kv(layer, below)

    def restore_kv(self, layer: int, spans: Sequence[slice]) -> bool:
        """Fetches a whole layer's saved keys and values into its KV cache; returns whether they were saved."""
        store = self._of_layer.get(layer)
        if self.stash is None or store is None:
            return False
        return self.stash.restore_kv(layer, spans, store)

    def pieces(self, length: int, window: int | None, key_block: int) -> list[Piece]:
        """Lists the mask tiles that the present tile's queries see."""
        return list(
            causal_pieces(
                self.start,
                self.start + length,
                key_block=key_block,
                window=window,
                document_starts=self.document_starts,
            )
        )

    def compute(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None) -> Tensor:
        """Computes the attention of the present tile; shapes as in AttentionBackend.

        Raises:
            KvCollected: the pass is COLLECT, and keys and values are kept.
        """
        self._see_window(window)
        if not self.lone and (
            self.purpose in (Pass.FORWARD, Pass.EVALUATE, Pass.COLLECT)
            or (self.purpose is Pass.REPEAT and self.stash is None)
        ):
            self.store(k).append(self.start, k, v)
        if self.purpose is Pass.FORWARD and self.stash is not None and not self.lone:
            self.stash.write_kv(self.layer, self.tile, q, k, v)
        if self.purpose is Pass.COLLECT:
            raise KvCollected
        if self.purpose is Pass.REPEAT and self.stash is not None:
            return self.stash.read(self.layer, self.tile)[0]
        if self.purpose in (Pass.GRADIENT, Pass.KEEP):
            result: Tensor = _TileAttentionFunction.apply(q, k, v, self, scale, window)  # type: ignore[no-untyped-call]
            return result
        out, logsumexp = self.attend(q, k, v, scale, window)
        if self.stash is not None and self.purpose is not Pass.EVALUATE:
            self.stash.write(self.layer, self.tile, out, logsumexp)
        return out

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> tuple[Tensor, Tensor]:
        """Computes the present tile's attention over all earlier keys; shapes as in AttentionBackend.

        Returns:
            out (1, heads, tile, head_dim), in q's dtype; logsumexp (1, heads, tile), fp32 or wider.
        """
        return attend(
            q,
            k,
            v,
            start=self.start,
            pieces=self.pieces(q.shape[2], window, self._forward_key_block),
            earlier=self.store(k),
            backend=self.backend,
            scale=scale,
        )


class _TileAttentionFunction(Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, state: TileAttention, scale: float, window: int | None
    ) -> Tensor:
        if state.stash is not None and state.purpose is Pass.GRADIENT:
            out, logsumexp = state.stash.read(state.layer, state.tile)
        else:
            out, logsumexp = state.attend(q, k, v, scale, window)
        ctx.save_for_backward(q, k, v, out, logsumexp)
        ctx.state, ctx.scale, ctx.window, ctx.start = state, scale, window, state.start
        ctx.store = state.store(k)
        # A view, so that autograd does not take the saved output's buffer for a fresh output that it may overwrite.
        return out.view_as(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, logsumexp = ctx.saved_tensors
        state: TileAttention = ctx.state
        store: KvCache = ctx.store
        dq, dk, dv = attend_backward(
            grad_out,
            q,
            k,
            v,
            out,
            logsumexp,
            start=ctx.start,
            pieces=state.pieces(q.shape[2], ctx.window, state.key_block),
            earlier=store,
            backend=state.backend,
            scale=ctx.scale,
        )
        if state.lone:
            return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None, None
        later_dk, later_dv = store.gradients(ctx.start, ctx.start + q.shape[2])
        return dq.to(q.dtype), (dk + later_dk).to(k.dtype), (dv + later_dv).to(v.dtype), None, None, None


class AttentionState(Protocol):
    """State of a step that a layer's call of the attention function reaches."""

    def compute(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None) -> Tensor:
        """Computes the attention of the present tile; shapes as in AttentionBackend.

        `window` is the number of keys that a query sees, None for all.
        """


_active: AttentionState | None = None


def activate(state: AttentionState | None) -> None:
    """Sets the state for layers whose attention implementation is IMPLEMENTATION; None clears it."""
    global _active
    _active = state


_calls = [0]


@contextlib.contextmanager
def counted_calls() -> Iterator[list[int]]:
    """Counts the calls of the attention function within the context, whatever computes them."""
    _calls[0] = 0
    yield _calls


def _attention_function(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001 - mask tiles are built from positions
    scaling: float | None = None,
    dropout: float = 0.0,  # noqa: ARG001 - Decoder refuses it
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Implements transformers' AttentionInterface; returns (1, tile, heads, head_dim)."""
    if _active is None:
        raise RuntimeError("no streamed step is running: this model's attention implementation was left behind")
    if softcap is not None or s_aux is not None:
        raise RuntimeError(f"{type(module).__name__} uses soft-capping or sinks, which flash kernels do not compute")
    if value.shape != key.shape:
        raise RuntimeError(f"{type(module).__name__} has values of another shape than its keys")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    _calls[0] += 1
    out = _active.compute(query, key, value, scale=scale, window=sliding_window)
    return out.transpose(1, 2).contiguous(), None  # as transformers' own functions return it: some layers view it


def register() -> None:
    """Registers IMPLEMENTATION with transformers."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(IMPLEMENTATION, _attention_function)
    # Without a mask function of the same name transformers would silently drop documents' borders.
    AttentionMaskInterface.register(IMPLEMENTATION, lambda *_, **__: None)
