"""Attention of several short prompts that go through the model as documents of one tile."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.attention.blockwise import attend
from engine.attention.mask_tiles import causal_pieces
from engine.attention.rule import AttentionRule
from engine.attention.select import BackendByWidth
from engine.attention.sinks import with_sinks
from engine.generation.slot_cache import RowStore, SlotCache
from engine.models.recurrent_mixers import Call, RecurrentMixer
from engine.streaming.decoder import Decoder


class PromptAttention:
    """Attention inside each prompt; keys and values go to the prompts' rows.

    Args:
        decoder: The model's decoder.
        cache: Caches of all rows.
        rows: Row of each prompt.
        starts: First position of each prompt in the tile.
        tokens: Length of the tile.
    """

    def __init__(
        self, decoder: Decoder, cache: SlotCache, rows: Sequence[int], starts: Sequence[int], tokens: int
    ) -> None:
        weight = decoder.embedding.weight
        self._backends = BackendByWidth.of(weight.device, weight.dtype, decoder.attention_shapes)
        self._cache, self._starts, self._tokens, self._layer = cache, tuple(starts), tokens, 0
        self._owners = decoder.kv_owners
        lengths = torch.tensor([*starts[1:], tokens]) - torch.tensor(starts)
        self._rows = torch.tensor(rows).repeat_interleave(lengths).to(weight.device)
        firsts = torch.tensor(starts).repeat_interleave(lengths)
        self._positions = (torch.arange(tokens) - firsts).to(weight.device)

    def at_layer(self, number: int) -> None:
        """See SequenceState."""
        self._layer = number

    def compute(self, q: Tensor, k: Tensor, v: Tensor, rule: AttentionRule) -> Tensor:
        """See AttentionState."""
        if self._owners[self._layer] is None:  # else an earlier layer has stored them
            self._cache.scatter(self._layer, self._rows, self._positions, k, v)
        borders = rule.borders(self._starts, self._tokens)
        pieces = causal_pieces(0, self._tokens, key_block=self._tokens, window=rule.window, document_starts=borders)
        earlier = RowStore(self._cache, self._layer, 0)  # nothing is before the tile
        backend = self._backends.serving(k, v, rule.softcap)
        out, logsumexp = attend(
            q, k, v, start=0, pieces=list(pieces), earlier=earlier, backend=backend, scale=rule.scale
        )
        return out if rule.sinks is None else with_sinks(out, logsumexp, rule.sinks)[0]

    def mix(self, mixer: RecurrentMixer, call: Call, x: Tensor) -> Tensor:  # noqa: ARG002
        """See MixerRunner.

        Raises:
            RuntimeError: always; a recurrent state would pass from one prompt to the next.
        """
        raise RuntimeError("prompts of a recurrent layer were packed")
