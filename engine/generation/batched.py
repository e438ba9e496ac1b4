"""Batched greedy decoding: the next tokens of several sequences go through the layers as one tile.

A single token leaves a GPU waiting for launches and a CPU for Python; a few more cost hardly more. Only attention is
computed sequence by sequence, each over its own KV cache.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence

import torch
from torch import Tensor

from engine.attention.rule import AttentionRule
from engine.generation.forward import CachedAttention, Forward, TiledForward, attending, through_layers
from engine.models.recurrent_mixers import Call, RecurrentMixer

TOGETHER = 8
"""Maximum sequences in a batch; each needs room for its KV cache."""


class _EachItsOwn:
    """Attention of a tile in which each token belongs to a sequence of its own."""

    def __init__(self, forwards: Sequence[TiledForward]) -> None:
        self._attentions: list[CachedAttention] = [forward.attention for forward in forwards]
        for forward in forwards:
            forward.attention.start = forward.length

    def at_layer(self, number: int) -> None:
        for attention in self._attentions:
            attention.at_layer(number)

    def compute(self, q: Tensor, k: Tensor, v: Tensor, rule: AttentionRule) -> Tensor:
        """Computes attention of one token per sequence; shapes as in CachedAttention."""
        outputs = [
            attention.compute(q[:, :, i : i + 1], k[:, :, i : i + 1], v[:, :, i : i + 1], rule)
            for i, attention in enumerate(self._attentions)
        ]
        return torch.cat(outputs, 2)

    def mix(self, mixer: RecurrentMixer, call: Call, x: Tensor) -> Tensor:
        """Continues a recurrent mixer for one token per sequence; see MixerRunner."""
        outputs = [attention.mix(mixer, call, x[:, i : i + 1]) for i, attention in enumerate(self._attentions)]
        return torch.cat(outputs, 1)


@torch.no_grad()
def advance_together(forwards: Sequence[TiledForward], token_ids: Tensor) -> Tensor:
    """Appends one token to each sequence, and returns their logits, (sequences, vocabulary) fp32.

    Args:
        forwards: Sequences of one model, each with room for a token.
        token_ids: (sequences,) int64.
    """
    decoder, device = forwards[0].decoder, forwards[0].device
    positions = torch.tensor([forward.length for forward in forwards], device=device)
    attention = _EachItsOwn(forwards)
    with attending(decoder, attention):
        hidden = through_layers(decoder, token_ids.to(device), positions, attention.at_layer)
        normed = decoder.final_norm(hidden)
    for forward in forwards:
        forward.length += 1
    logits: Tensor = decoder.head(normed)[0]
    return logits.float()


def write_together(
    forwards: Sequence[Forward],
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    ends: Container[int],
    take: Callable[[int, int], bool],
) -> None:
    """Decodes the likeliest tokens after each prompt.

    Args:
        forwards: Empty sequences of one model, each with room for its prompt and `max_tokens`.
        prompts: Token ids of each, at least one.
        max_tokens: Maximum new tokens of each.
        ends: End tokens; they are not passed to `take`.
        take: Called with a sequence's number and its next token; False ends that sequence.
    """
    latest = [
        int(forward.advance(torch.tensor(prompt)).argmax()) for forward, prompt in zip(forwards, prompts, strict=True)
    ]
    going = list(range(len(forwards)))
    for written in range(1, max_tokens + 1):
        going = [i for i in going if latest[i] not in ends and take(i, latest[i])]
        if not going or written == max_tokens:
            return
        rows = _advance([forwards[i] for i in going], torch.tensor([latest[i] for i in going]))
        for i, token in zip(going, rows.argmax(-1).tolist(), strict=True):
            latest[i] = token


def _advance(forwards: Sequence[Forward], token_ids: Tensor) -> Tensor:
    tiled = [forward for forward in forwards if isinstance(forward, TiledForward)]
    if len(tiled) == len(forwards):
        return advance_together(tiled, token_ids)
    return torch.stack([forward.advance(token[None]) for forward, token in zip(forwards, token_ids, strict=True)])
