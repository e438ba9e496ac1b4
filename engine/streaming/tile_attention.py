"""Attention as a mixer: a tile takes the keys and values of earlier tiles, and adds to their gradients.

Where a layer compresses keys and values (engine/streaming/latent_attention.py), "keys and values" that are stored,
fetched and given gradients to are its latents.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from engine.attention.backend import AttentionBackend
from engine.attention.mask_tiles import Piece
from engine.attention.rule import AttentionRule
from engine.attention.select import BackendByWidth
from engine.streaming import attention as streamed_attention
from engine.streaming.attended_tile import TileAttention, with_graph
from engine.streaming.decoder import SHARED_KV
from engine.streaming.kv_cache import KvCache, KvShape
from engine.streaming.latent_attention import Expand, routed_expansion, with_later_gradients
from engine.streaming.mixer import KvCollected, Mixer, Pass
from engine.streaming.saved_attention import SavedAttention
from engine.streaming.shared_kv import SharedKv
from engine.streaming.windowed_kv_cache import WindowedKvCache


class AttentionLayers:
    """What the attention layers of a step share: the kernel, the saved outputs and the KV caches.

    Only one layer's keys and values exist at a time, so layers of the same shape share a cache. A layer whose keys and
    values later layers attend to has a cache of its own.

    Args:
        config: Configuration of the model, for errors.
        backends: Kernels of one block.
        key_block: Most keys in one call of its backward, whose temporaries are as long as its keys.
        forward_key_block: Most keys in one call of its forward.
        new_kv_cache: Makes the KV cache for keys and values of a shape, when the first layer shows it.
        saved: Saves attention outputs between the passes; None to recompute attention.
        new_windowed: Makes the KV cache of layers with a window for (shape, window); returns None where it would be no
            smaller than that of a whole layer. Without it every layer has a whole cache.
    """

    def __init__(
        self,
        config: Any,
        backends: BackendByWidth,
        key_block: int,
        forward_key_block: int,
        new_kv_cache: Callable[[KvShape], KvCache],
        saved: SavedAttention | None,
        new_windowed: Callable[[KvShape, int], WindowedKvCache | None] | None = None,
    ) -> None:
        self.config, self.backends, self.saved = config, backends, saved
        self.key_block, self.forward_key_block = key_block, forward_key_block
        self._new_kv_cache, self._new_windowed = new_kv_cache, new_windowed
        self._caches: dict[tuple[KvShape, int | None], KvCache] = {}
        self._shared: dict[tuple[KvShape, tuple[str | int, ...]], KvCache] = {}
        self._holders: dict[KvCache, AttentionMixer] = {}
        self._mixers: list[AttentionMixer] = []
        self.document_starts: Sequence[int] = (0,)
        self.pieces: dict[tuple[int, ...], list[Piece]] = {}
        self.hand_on = False
        "Whether layers take the argument through which keys and values are handed on."
        self.lone = False
        "Whether the sequence is a single tile, which no other takes keys from."

    @property
    def backend(self) -> AttentionBackend:
        """Kernel of the widest heads."""
        return self.backends.widest

    def begin_sequence(self, document_starts: Sequence[int], *, lone: bool) -> None:
        """Begins another sequence, whose layers need new mixers."""
        self.document_starts, self.lone = document_starts, lone
        self.pieces.clear()
        self._holders.clear()
        self._mixers.clear()

    def mixer(
        self,
        layer: int,
        *,
        optional: bool = False,
        latent: nn.Module | None = None,
        lent: SharedKv | None = None,
        borrowed: SharedKv | None = None,
    ) -> AttentionMixer:
        """Makes the mixer of a layer for the present sequence.

        Args:
            layer: Number of the layer.
            optional: Whether it may do without attention.
            latent: Its attention, where that expands latents.
            lent: Takes its keys and values, where later layers attend to them.
            borrowed: The keys and values of the earlier layer that it attends to, in place of its own.
        """
        shared = (lent, borrowed)
        if self.saved is None:
            mixer = AttentionMixer(layer, self, *shared)
        else:
            mixer = SavedAttentionMixer(layer, self, self.saved, *shared)
        mixer.optional, mixer.latent = optional, latent
        self._mixers.append(mixer)
        return mixer

    def cache(self, shape: KvShape, window: int | None) -> KvCache:
        """Returns the cache for keys and values of a shape, seen through a window; made on first use."""
        cache = self._caches.get((shape, window))
        if cache is None and window is not None and self._new_windowed is not None:
            cache = self._new_windowed(shape, window)
        if cache is None:
            if (shape, None) not in self._caches:
                self._caches[shape, None] = self._new_kv_cache(shape)
            cache = self._caches[shape, None]
        self._caches[shape, window] = cache
        return cache

    def shared_cache(self, shape: KvShape, names: tuple[str | int, ...]) -> KvCache:
        """Returns the cache of the layer whose keys and values later layers find by these names; made on first use."""
        if (shape, names) not in self._shared:
            self._shared[shape, names] = self._new_kv_cache(shape)
        return self._shared[shape, names]

    @property
    def caches(self) -> set[KvCache]:
        """The caches that were made."""
        return {*self._caches.values(), *self._shared.values()}

    def hold(self, cache: KvCache, mixer: AttentionMixer) -> None:
        """Records whose keys a cache holds."""
        self._holders[cache] = mixer

    def holds(self, cache: KvCache, mixer: AttentionMixer) -> bool:
        """Whether a cache holds this layer's keys."""
        return self._holders.get(cache) is mixer

    def release(self) -> None:
        """Drops the KV caches and their gradients, also those that the present mixers use."""
        self._caches.clear()
        self._shared.clear()
        self._holders.clear()
        for mixer in self._mixers:
            mixer.release()
        self._mixers.clear()


_Case = Callable[[TileAttention, int, Tensor, Tensor, Tensor], Tensor]
"""Computes a tile's attention from (attention, number of the tile, q, k, v)."""


class AttentionMixer(Mixer):
    """Keys and values of one attention layer, of its whole context or of a window; a recompute attends again.

    Args:
        layer: Number of the layer.
        layers: What it shares with the other layers.
        lent, borrowed: As in AttentionLayers.mixer.
    """

    def __init__(
        self, layer: int, layers: AttentionLayers, lent: SharedKv | None = None, borrowed: SharedKv | None = None
    ) -> None:
        self.layer, self._layers = layer, layers
        self._lent, self._borrowed, self._shared = lent, borrowed, lent or borrowed
        self._cache: KvCache | None = None
        self._reach: int | None = None
        self.optional = False
        "Whether the layer may do without attention."
        self.latent: nn.Module | None = None
        "The layer's attention, where that expands latents."
        self._cases = self._choose_cases(lone=layers.lone)

    def _choose_cases(self, *, lone: bool) -> dict[Pass, _Case]:
        """Chooses what each pass does with a tile; a lone tile's keys serve no other."""
        appends = self._lent is not None or not (lone or self._borrowed is not None)
        attend_first = self._append_and_attend if appends else self._attend
        return {
            Pass.FORWARD: attend_first,
            Pass.EVALUATE: attend_first,
            # What is lent is still there, and may have gradients.
            Pass.REPEAT: attend_first if self._lent is None else self._attend,
            Pass.COLLECT: self._append_and_end,
            Pass.GRADIENT: self._attend_with_graph,
            Pass.KEEP: self._attend_with_graph if self._lent is None else self._append_and_attend_with_graph,
        }

    @contextlib.contextmanager
    def running(self, purpose: Pass, tile: int, span: slice) -> Iterator[Mapping[str, Any]]:
        """See Mixer.

        Raises:
            EliteError: MODEL_FAMILY_UNSUPPORTED, for a layer that does not call the attention function once.
        """
        call = _Call(self, self._cases[purpose], tile, span.start)
        with (
            routed_expansion(self.latent, call.expand),
            streamed_attention.one_call(call, self._layers.config, self.layer, optional=self.optional),
        ):
            yield self._arguments(span)

    def _arguments(self, span: slice) -> Mapping[str, Any]:
        """Returns the argument through which layers share keys and values; none where no layer of the model does."""
        if self._borrowed is not None:
            return {SHARED_KV: dict.fromkeys(self._borrowed.names, self._borrowed.tile(span))}
        return {SHARED_KV: {}} if self._layers.hand_on else {}

    @property
    def takes_later_gradients(self) -> bool:
        """Whether the tile whose graph is built takes the gradients that later tiles gave to what it stored."""
        return not self._layers.lone

    def at(
        self, start: int, rule: AttentionRule, stored: tuple[Tensor, Tensor], expand: Expand | None
    ) -> TileAttention:
        """Returns the attention of the tile at `start`; arguments and their shapes are those of TileAttention.

        Raises:
            RuntimeError: an earlier pass had another window. The KV cache may then lack keys that the layer sees.
        """
        if self._cache is None:
            self._reach = rule.reach
        elif self._reach != rule.reach:
            raise RuntimeError(
                f"layer {self.layer} attends through a window of {rule.reach} after one of {self._reach}"
            )
        self._cache = self._cache_of(KvShape.of(*stored), rule)
        return TileAttention(
            layers=self._layers,
            cache=self._cache,
            start=start,
            rule=rule,
            stored=stored,
            expand=expand,
            borrowed=self._borrowed,
            lends=self._lent is not None,
        )

    def _cache_of(self, shape: KvShape, rule: AttentionRule) -> KvCache:
        if self._borrowed is not None:
            return self._borrowed.cache
        if self._lent is None:
            return self._layers.cache(shape, rule.reach)
        cache = self._layers.shared_cache(shape, self._lent.names)
        self._lent.keep(cache)
        return cache

    @property
    def stored(self) -> KvCache:
        """The cache of the layer, which an earlier pass has filled."""
        assert self._cache is not None
        return self._cache

    @property
    def attends(self) -> bool:
        """Whether the layer has called the attention function in this sequence."""
        return self._cache is not None

    def release(self) -> None:
        """Drops the KV cache."""
        self._cache = None
        if self._shared is not None:
            self._shared.release()

    # --- what a pass does with a tile ------------------------------------------------------------------------

    def _attend(self, attention: TileAttention, _: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention.forward(q, k, v)[0]

    def _append_and_attend(self, attention: TileAttention, _: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self._append(attention)
        return attention.forward(q, k, v)[0]

    def _append_and_end(self, attention: TileAttention, *_: Any) -> Tensor:
        self._append(attention)
        raise KvCollected

    def _attend_with_graph(self, attention: TileAttention, _: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return with_graph(attention, q, k, v, lambda: attention.forward(q, k, v))

    def _append_and_attend_with_graph(
        self, attention: TileAttention, tile: int, q: Tensor, k: Tensor, v: Tensor
    ) -> Tensor:
        self._append(attention)
        return self._attend_with_graph(attention, tile, q, k, v)

    def _append(self, attention: TileAttention) -> None:
        attention.append()
        self._layers.hold(attention.cache, self)

    # --- keys and values restored for the backward pass ------------------------------------------------------

    def restore(self, spans: Sequence[slice]) -> bool:
        """See Mixer. A single tile needs only its own keys; those in a window are restored tile by tile."""
        if len(spans) == 1 or self.reach is not None or self._shared is not None:
            return True
        return self._cache is not None and (self._layers.holds(self._cache, self) or self._fetch(spans, self._cache))

    def _fetch(self, spans: Sequence[slice], cache: KvCache) -> bool:  # noqa: ARG002
        """Fetches the saved keys and values of all tiles into the cache; returns whether they were saved."""
        return False

    def begin_backward(self) -> None:
        """See Mixer."""
        if self._shared is not None:
            self._shared.begin_backward()
        elif not self._layers.lone:
            assert self._cache is not None
            self._cache.zero_gradients()

    @property
    def reach(self) -> int | None:
        """Counts the earlier tiles whose keys are restored just before a tile; None where all come first."""
        return self._cache.ring.reach if isinstance(self._cache, WindowedKvCache) else None

    def below(self, tile: int, tiles: int) -> range:
        """Lists the tiles whose keys are restored just before this one, where tiles run down from the last."""
        reach = self.reach or 0
        lowest = tile - reach
        nearest = tile - 1 if tile == tiles - 1 else lowest  # the others were restored before a later tile
        return range(nearest, max(lowest, 0) - 1, -1) if reach else range(0)

    def backward_order(self, tiles: int) -> list[tuple[Pass, int]]:
        """See Mixer. The keys in a window are collected just before the first tile that sees them."""
        order = []
        for tile in reversed(range(tiles)):
            order += [(Pass.COLLECT, below) for below in self.below(tile, tiles)]
            order.append((Pass.GRADIENT, tile))
        return order


class SavedAttentionMixer(AttentionMixer):
    """An AttentionMixer whose backward pass reads attention outputs that the forward pass saved.

    Args:
        layer, layers: As in AttentionMixer.
        saved: Saves the outputs, and keys and values where they are small.
    """

    def __init__(
        self,
        layer: int,
        layers: AttentionLayers,
        saved: SavedAttention,
        lent: SharedKv | None = None,
        borrowed: SharedKv | None = None,
    ) -> None:
        self._saved = saved
        super().__init__(layer, layers, lent, borrowed)

    def _choose_cases(self, *, lone: bool) -> dict[Pass, _Case]:
        cases = super()._choose_cases(lone=lone)
        appends = cases[Pass.FORWARD] == self._append_and_attend
        return {
            **cases,
            Pass.FORWARD: self._append_attend_and_save if appends else self._attend_and_save,
            Pass.REPEAT: self._read,
            Pass.GRADIENT: self._read_with_graph,
        }

    def _attend_and_save(self, attention: TileAttention, tile: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, logsumexp = attention.forward(q, k, v)
        self._saved.write(self.layer, tile, out, logsumexp)
        return out

    def _append_attend_and_save(self, attention: TileAttention, tile: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self._append(attention)
        if self._lent is None and attention.cache.takes_saved:
            self._saved.write_kv(self.layer, tile, *attention.stored, output=q.shape[1] * v.shape[3])
        return self._attend_and_save(attention, tile, q, k, v)

    def _read(self, _: TileAttention, tile: int, *__: Tensor) -> Tensor:
        return self._saved.read(self.layer, tile)[0]

    def _read_with_graph(self, attention: TileAttention, tile: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return with_graph(attention, q, k, v, lambda: self._saved.read(self.layer, tile))

    def prefetch(self, purpose: Pass, tile: int) -> None:
        """See Mixer."""
        if purpose in (Pass.REPEAT, Pass.GRADIENT):
            self._saved.prefetch(self.layer, tile)

    def _fetch(self, spans: Sequence[slice], cache: KvCache) -> bool:
        if not self._saved.restore_kv(self.layer, spans, cache):
            return False
        self._layers.hold(cache, self)
        return True

    def backward_order(self, tiles: int) -> list[tuple[Pass, int]]:
        """See Mixer. Saved keys in a window are fetched instead (`restore_below`)."""
        order = super().backward_order(tiles)
        return [turn for turn in order if turn[0] is Pass.GRADIENT] if self._saved.keeps_kv(self.layer) else order

    def restore_below(self, tile: int, spans: Sequence[slice]) -> None:
        """See Mixer. Also prefetches the keys and values of the next tile."""
        cache = self._cache
        if not isinstance(cache, WindowedKvCache) or not self._saved.keeps_kv(self.layer):
            return
        for below in self.below(tile, len(spans)):
            cache.append(spans[below].start, *self._saved.read_kv(self.layer, below, cache.kv_heads))
        for below in self.below(tile - 1, len(spans)):
            self._saved.prefetch_kv(self.layer, below)


class _Call:
    """The AttentionState of one call of a layer."""

    def __init__(self, mixer: AttentionMixer, case: _Case, tile: int, start: int) -> None:
        self._mixer, self._case, self._tile, self._start = mixer, case, tile, start
        self._latents: tuple[Tensor, Tensor] | None = None
        self._expand: Expand | None = None

    def expand(self, own: Expand, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Expands the tile's latents by the layer's own method, and keeps them to be stored."""
        self._latents, self._expand = (first.detach(), second.detach()), own
        if self._mixer.takes_later_gradients and (first.requires_grad or second.requires_grad):
            first, second = with_later_gradients(first, second, self._mixer.stored, self._start)
        return own(first, second)

    def compute(self, q: Tensor, k: Tensor, v: Tensor, rule: AttentionRule) -> Tensor:
        """See AttentionState."""
        stored = (k, v) if self._latents is None else self._latents
        return self._case(self._mixer.at(self._start, rule, stored, self._expand), self._tile, q, k, v)
