"""The buffers of a streamed step, allocated at the first sequence and reused by every sequence that is no longer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from engine.attention.select import BackendByWidth
from engine.models.layers import has_attention
from engine.plan.stream_plan import FORWARD_BLOCKS, StreamPlan
from engine.plan.window_ring import ring_for
from engine.streaming.copies import CopyStreams
from engine.streaming.decoder import Decoder
from engine.streaming.hidden_states import HiddenStates
from engine.streaming.kv_cache import DeviceKvCache, HostKvCache, KvCache, KvShape
from engine.streaming.latent_attention import latent_attention, refuse_dropout
from engine.streaming.layer_inputs import LayerInputs
from engine.streaming.mixer import Mixer
from engine.streaming.recurrent_mixing import RecurrentMixing
from engine.streaming.recurrent_states import BorderStates
from engine.streaming.saved_attention import SavedAttention
from engine.streaming.shared_kv import SharedKv
from engine.streaming.tile_attention import AttentionLayers
from engine.streaming.tile_factory import TileFactory
from engine.streaming.tiles import TileArray, TileReader
from engine.streaming.windowed_kv_cache import WindowedKvCache


class Workspace:
    """Owns the hidden states, and the attention with its KV caches and saved outputs.

    Args:
        decoder: Gives the buffers' shapes.
        plan: Names the buffers' homes.
        device: The compute device.
        streams: Side streams of a CUDA device, None on a CPU.
        spill_directory: Directory of the files of homes on disk.
    """

    def __init__(
        self,
        decoder: Decoder,
        plan: StreamPlan,
        device: torch.device,
        streams: CopyStreams | None,
        spill_directory: Path | None,
    ) -> None:
        self._decoder, self._plan, self._device, self._streams = decoder, plan, device, streams
        self._factory = TileFactory(plan.hidden_home, device, streams, spill_directory)
        self._stash_factory = self._gradient_factory = self._factory
        if plan.stash and plan.stash_home != plan.hidden_home:
            self._stash_factory = TileFactory(plan.stash_home, device, streams, spill_directory)
        if plan.gradient_home != plan.hidden_home:
            self._gradient_factory = TileFactory(plan.gradient_home, device, streams, spill_directory)
        self._hidden: HiddenStates | None = None
        self._attention: AttentionLayers | None = None
        self.border_states = BorderStates(self._new_border_array, self._new_border_reader)
        self.layer_inputs = LayerInputs(partial(self._new_array, self._factory), self._new_reader)
        self.context = 0
        "Tokens that the buffers hold."
        self._rows = 0  # tokens of the present sequence

    @property
    def hidden(self) -> HiddenStates:
        """The hidden states; only after `prepare`."""
        assert self._hidden is not None
        return self._hidden

    @property
    def attention(self) -> AttentionLayers:
        """The attention; only after `prepare`."""
        assert self._attention is not None
        return self._attention

    @property
    def backend_name(self) -> str:
        """Name of the attention backend in use; "" before the first sequence."""
        return self._attention.backend.name if self._attention else ""

    def prepare(self, context: int) -> None:
        """Prepares the buffers for a sequence of `context` tokens.

        Raises:
            MemoryError, torch.OutOfMemoryError, OSError: a home has no room.
            StreamPlanError: the model or the machine does not support the attention backend or the number of bits.
        """
        if context > self.context:
            self.release()
            self.context = context
        self._rows = context
        dtype = self._decoder.embedding.weight.dtype
        if self._hidden is None:
            self._hidden = HiddenStates(
                layers=len(self._decoder.layers),
                context=self.context,
                width=self._decoder.hidden_size,
                dtype=dtype,
                plan=self._plan,
                factory=self._factory,
                gradient_factory=self._gradient_factory,
            )
        self._hidden.begin(context)
        if self._attention is None:
            self._attention = self._make_attention(dtype)
        if self._attention.saved is not None:
            self._attention.saved.begin(context)
        self.layer_inputs.begin(context)

    def _make_attention(self, dtype: torch.dtype) -> AttentionLayers:
        plan = self._plan
        backends = BackendByWidth.of(self._device, dtype, self._decoder.attention_shapes, plan.attention)

        new_array = partial(self._new_array, self._stash_factory)
        saved = SavedAttention(new_array, self._new_reader) if plan.stash else None
        # The forward has no temporary as long as its keys, unless keys are fetched a page at a time or expanded.
        single = self._pages_kv or any(map(latent_attention, self._decoder.layers))
        forward_block = plan.key_block * (1 if single else FORWARD_BLOCKS)
        layers = AttentionLayers(
            self._decoder.config,
            backends,
            plan.key_block,
            forward_block,
            self._new_kv_cache,
            saved,
            self._new_windowed_kv_cache,
        )
        layers.hand_on = self._decoder.hands_on_kv
        return layers

    def _new_array(self, factory: TileFactory, width: int, dtype: torch.dtype) -> TileArray:
        array = factory.array(self.context, width, dtype, self._plan.tile)
        array.rows = self._rows
        return array

    def _new_reader(self, width: int, dtype: torch.dtype) -> TileReader:
        return TileReader(width, dtype, min(self._plan.tile, self.context), self._device)

    def mixers(self, document_starts: Sequence[int], *, lone: bool) -> list[Mixer]:
        """Makes the mixer of each layer for a sequence of these documents; `lone`: it is a single tile."""
        self.attention.begin_sequence(document_starts, lone=lone)
        tile = self._plan.tile
        spans = [slice(start, min(start + tile, self._rows)) for start in range(0, self._rows, tile)]
        self.border_states.begin(len(spans))
        shared = self._shared_kv()
        found: list[Mixer] = []
        for layer, recurrent in enumerate(self._decoder.mixers):
            # A layer of nothing but an MLP couples no tokens at all.
            optional = bool(recurrent) or not has_attention(self._decoder.layers[layer])
            latent = latent_attention(self._decoder.layers[layer])
            refuse_dropout(latent, self._decoder.config)
            owner = self._decoder.kv_owners[layer]
            attention = self.attention.mixer(
                layer,
                optional=optional,
                latent=latent,
                lent=shared.get(layer),
                borrowed=None if owner is None else shared[owner],
            )
            states = self.border_states
            found.append(
                RecurrentMixing(recurrent, states, attention, document_starts, spans) if optional else attention
            )
        return found

    def _shared_kv(self) -> dict[int, SharedKv]:
        """Makes what holds the keys and values of each layer that later layers attend to, by its number."""
        owners = {owner for owner in self._decoder.kv_owners if owner is not None}
        if not owners:  # a configuration without any need not list its layers' types
            return {}
        kinds, page = self._decoder.config.layer_types, self._plan.key_block
        return {owner: SharedKv((kinds[owner], owner), page) for owner in owners}

    def _new_border_array(self, width: int, dtype: torch.dtype) -> TileArray:
        return self._factory.array(-(-self.context // self._plan.tile), width, dtype, 1)

    def _new_border_reader(self, width: int, dtype: torch.dtype) -> TileReader:
        return TileReader(width, dtype, 1, self._device)

    def _new_kv_cache(self, shape: KvShape) -> KvCache:
        if self._pages_kv:
            assert self._streams is not None
            return HostKvCache(self.context, shape, self._device, self._streams, self._plan.key_block)
        return DeviceKvCache(self.context, shape, self._device)

    def _new_windowed_kv_cache(self, shape: KvShape, window: int) -> WindowedKvCache | None:
        """Makes the KV cache of a layer with a window, always on the device, because it is small."""
        ring = ring_for(window, self._plan.tile, self.context)
        return None if ring is None else WindowedKvCache(ring, shape, self._device)

    @property
    def _pages_kv(self) -> bool:
        """Whether keys and values are offloaded to the host; on a CPU the host is the device."""
        return self._plan.kv_home == "host" and self._streams is not None

    def release(self) -> None:
        """Frees all buffers; the next sequence allocates them again."""
        if self._device.type == "cuda":
            # Copies that were started and never awaited still use the memory that is freed here.
            torch.cuda.synchronize(self._device)
        if self._hidden is not None:
            self._hidden.close()
        if self._attention is not None:
            self._attention.release()
            if self._attention.saved is not None:
                self._attention.saved.close()
        self.border_states.close()
        self.layer_inputs.close()
        self._hidden = self._attention = None
        for factory in (self._factory, self._stash_factory, self._gradient_factory):
            factory.release()
        self.context = 0
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
