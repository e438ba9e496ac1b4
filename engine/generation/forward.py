"""Runs one sequence through a model: a prompt of any length tile by tile, then token by token.

The order is token-major: a tile goes through all layers, each with its own KV cache. (The streamed step is layer-major:
all tiles go through one layer, whose keys and values serve one pass only.) So only the KV cache is kept, on the GPU
while it fits there, else in pages on the host; no tensor is as long as the prompt.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from engine.attention.blockwise import KeyValueReader, attend
from engine.attention.mask_tiles import causal_pieces
from engine.attention.rule import AttentionRule
from engine.attention.select import BackendByWidth
from engine.attention.sinks import with_sinks
from engine.generation.kv_cache import PagedKvCache
from engine.models.families import refusal, setting_refusals
from engine.models.recurrent_mixers import Call, MixerRunner, RecurrentMixer, routed
from engine.streaming import attention as streamed_attention
from engine.streaming.decoder import Decoder, refuse_position_dependent_rope
from engine.streaming.mixer_cache import MixerCache, States

TILE = 2048
"""Tokens of a prompt that pass through the model at once."""
PAGE = 8192
"""Tokens per page of the KV cache, and most keys in one attention call."""
_GPU_SHARE = 0.6
"""Share of the free GPU memory that the KV caches of all sequences may take before they are offloaded to the host."""


class Forward(Protocol):
    """A sequence that can be extended."""

    def advance(self, token_ids: Tensor) -> Tensor:
        """Appends tokens, (n,) int64, at least one; returns the logits after the last one, (vocabulary,) fp32."""


def open_forward(model: Any, capacity: int, *, tile: int = TILE, page: int = PAGE, among: int = 1) -> Forward:
    """Opens a sequence of at most `capacity` tokens through a model, with its adapter on or off as it is now.

    Args:
        model: In evaluation mode.
        capacity: Maximum number of tokens.
        tile: Tokens of a prompt that pass through the model at once.
        page: Tokens per page of the KV cache.
        among: Number of open sequences that share the GPU's memory.

    Raises:
        EliteError: MODEL_FAMILY_UNSUPPORTED, where rotary tables depend on the total length, which tiles cannot know.
    """
    if takes_tiles(model):
        return TiledForward(model, capacity, tile=tile, page=page, among=among)
    return LibraryForward(model, tile=tile)


def takes_tiles(model: Any) -> bool:
    """Whether tiles of the model's family and settings are known to be exact."""
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    settings = setting_refusals(causal.config.to_dict())
    return refusal(causal.config.model_type, "streamed") is None and "streamed" not in settings


class KvStore(KeyValueReader, Protocol):
    """Keys and values of one layer of one sequence."""

    def append(self, start: int, k: Tensor, v: Tensor) -> None:
        """Stores k, v (1, kv_heads, tile, head_dim) of the tokens from position `start` on."""


class CachedAttention:
    """Attention of the current tile to itself and all earlier keys, for the current layer.

    Attributes:
        states: States of the recurrent mixers after all tokens so far, by the mixer's key.

    Args:
        decoder: The model's decoder.
        page: Most keys in one attention call.
        open_store: Opens the KV cache of a layer.
    """

    def __init__(self, decoder: Decoder, page: int, open_store: Callable[[int], KvStore]) -> None:
        self._page, self._open_store = page, open_store
        weight = decoder.embedding.weight
        self._backends = BackendByWidth.of(weight.device, weight.dtype, decoder.attention_shapes)
        self._stores: dict[int, KvStore] = {}
        self._owners = decoder.kv_owners
        self.states: dict[tuple[int, int], States] = {}
        self.layer = self.start = 0

    def at_layer(self, number: int) -> None:
        """Selects the layer of the following calls."""
        self.layer = number

    def compute(self, q: Tensor, k: Tensor, v: Tensor, rule: AttentionRule) -> Tensor:
        """Appends keys and values to the cache, and attends; shapes as in AttentionBackend."""
        owner = self._owners[self.layer]
        if owner is None:
            if self.layer not in self._stores:
                self._stores[self.layer] = self._open_store(self.layer)
            self._stores[self.layer].append(self.start, k, v)
        store = self._stores[self.layer if owner is None else owner]
        stop = self.start + q.shape[2]
        borders = rule.borders((0,), stop)
        pieces = causal_pieces(self.start, stop, key_block=self._page, window=rule.window, document_starts=borders)
        backend = self._backends.serving(k, v, rule.softcap)
        out, logsumexp = attend(
            q, k, v, start=self.start, pieces=pieces, earlier=store, backend=backend, scale=rule.scale
        )
        return out if rule.sinks is None else with_sinks(out, logsumexp, rule.sinks)[0]

    def mix(self, mixer: RecurrentMixer, call: Call, x: Tensor) -> Tensor:
        """Continues a recurrent mixer from its states after all earlier tokens. See MixerRunner."""
        cache = MixerCache(self.states.get(mixer.key))
        y = call(x, cache)
        self.states[mixer.key] = {name: state.contiguous() for name, state in {**cache.before, **cache.after}.items()}
        return y


class SequenceState(streamed_attention.AttentionState, MixerRunner, Protocol):
    """What layers reach while they extend a sequence."""

    def at_layer(self, number: int) -> None:
        """Selects the layer of the following calls."""


def home_of(size: int, device: torch.device) -> torch.device:
    """Chooses the device for a KV cache of `size` bytes."""
    if device.type != "cuda":
        return device
    free, _ = torch.cuda.mem_get_info(device)
    return device if size < _GPU_SHARE * free else torch.device("cpu")


def through_layers(decoder: Decoder, ids: Tensor, positions: Tensor, at_layer: Callable[[int], None]) -> Tensor:
    """Runs tokens through all layers together; returns the last layer's output, (1, n, hidden).

    Args:
        decoder: The model's decoder.
        ids, positions: Ids and positions of the tokens, (n,), on its device.
        at_layer: Called with each layer's number before it is computed.
    """
    x, inputs = decoder.embed_for_layers(ids[None], positions[None])
    arguments = decoder.layer_arguments(x, positions[None])
    own = decoder.own_arguments(inputs)
    for number, layer in enumerate(decoder.layers):
        at_layer(number)
        output: Any = layer(decoder.unfolded(x), **{**arguments[number], **own[number]})
        x = decoder.folded(output[0] if isinstance(output, tuple) else output)
    return x


@contextlib.contextmanager
def attending(decoder: Decoder, attention: SequenceState) -> Iterator[None]:
    """Routes the model's attention and recurrent mixers through `attention` inside the block."""
    config = decoder.config
    implementation = config._attn_implementation
    config._attn_implementation = streamed_attention.IMPLEMENTATION
    streamed_attention.activate(attention)
    try:
        with routed([mixer for of_layer in decoder.mixers for mixer in of_layer], attention):
            yield
    finally:
        streamed_attention.activate(None)
        config._attn_implementation = implementation


def by_tiles(decoder: Decoder, attention: CachedAttention, token_ids: Tensor, start: int, tile: int) -> Tensor:
    """Appends tokens to a sequence tile by tile; returns the logits after the last one, (vocabulary,) fp32.

    Args:
        decoder: The model's decoder.
        attention: State of the sequence.
        token_ids: Tokens from position `start` on, (n,) int64, at least one.
        start: Tokens before them.
        tile: Tokens that pass through the model at once.
    """
    device, hidden = decoder.embedding.weight.device, None
    with attending(decoder, attention):
        for ids in token_ids.split(tile):
            positions = torch.arange(start, start + len(ids), device=device)
            attention.start = start
            hidden = through_layers(decoder, ids.to(device), positions, attention.at_layer)
            start += len(ids)
        assert hidden is not None
        normed = decoder.final_norm(hidden[:, -1:])
    logits: Tensor = decoder.head(normed)[0, 0]
    return logits.float()


def packed_prompts(decoder: Decoder, attention: SequenceState, ids: Tensor, starts: Sequence[int]) -> Tensor:
    """Runs several prompts through the model as documents of one tile.

    Args:
        decoder: The model's decoder; no layer is recurrent.
        attention: Keeps the documents apart.
        ids: Tokens of the prompts one after the other, (n,) int64.
        starts: First position of each prompt.

    Returns:
        Logits after each prompt, (prompts, vocabulary) fp32.
    """
    device = decoder.embedding.weight.device
    ends = [*starts[1:], len(ids)]
    positions = torch.cat([torch.arange(end - start) for start, end in zip(starts, ends, strict=True)]).to(device)
    with attending(decoder, attention):
        hidden = through_layers(decoder, ids.to(device), positions, attention.at_layer)
        normed = decoder.final_norm(hidden[:, torch.tensor(ends, device=device) - 1])
    logits: Tensor = decoder.head(normed)[0]
    return logits.float()


def kv_bytes(decoder: Decoder) -> int:
    """Bytes of the keys and values of one token in all layers."""
    shape = decoder.attention_shape
    stores = decoder.kv_owners.count(None)
    return 2 * stores * shape.kv_heads * shape.head_dim * decoder.embedding.weight.dtype.itemsize


class TiledForward:
    """A Forward over the layers of a family whose tiles are known to be exact (engine.models.families).

    Attributes:
        decoder: The model's decoder.
        attention: KV cache and attention of this sequence.
        capacity: Maximum number of tokens.
        home: Device of the KV cache.
        length: Number of tokens so far.
    """

    def __init__(self, model: nn.Module, capacity: int, *, tile: int, page: int, among: int = 1) -> None:
        self.decoder = Decoder(model)
        refuse_position_dependent_rope(self.decoder.config, capacity)
        self.device = self.decoder.embedding.weight.device
        self.home = home_of(kv_bytes(self.decoder) * capacity * among, self.device)
        self.attention = CachedAttention(
            self.decoder, page, lambda _: PagedKvCache(capacity, page, self.home, self.device)
        )
        self._tile, self.capacity = tile, capacity
        self.length = 0
        streamed_attention.register()

    @torch.no_grad()
    def advance(self, token_ids: Tensor) -> Tensor:
        """See Forward.

        Raises:
            ValueError: the sequence would exceed its capacity.
        """
        if self.length + len(token_ids) > self.capacity:
            raise ValueError(f"{self.length + len(token_ids)} tokens in a sequence of {self.capacity}")
        logits = by_tiles(self.decoder, self.attention, token_ids, self.length, self._tile)
        self.length += len(token_ids)
        return logits


class LibraryForward:
    """A Forward over transformers' own cache, for families whose tiles are not known to be exact."""

    def __init__(self, model: Any, *, tile: int) -> None:
        from transformers import DynamicCache

        causal = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._model, self._tile = model, tile
        self._cache = DynamicCache(config=causal.config)
        self._device = causal.get_input_embeddings().weight.device

    @torch.no_grad()
    def advance(self, token_ids: Tensor) -> Tensor:
        """See Forward."""
        logits: Tensor | None = None
        for ids in token_ids.split(self._tile):
            logits = self._model(
                input_ids=ids[None].to(self._device), past_key_values=self._cache, use_cache=True, logits_to_keep=1
            ).logits[0, -1]
        assert logits is not None
        return logits.float()
