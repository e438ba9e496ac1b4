"""The attention function that unmodified decoder layers call while a streamed step runs them tile by tile."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor, nn

from engine.attention.rule import AttentionRule, chunk_of
from engine.streaming.decoder import does_not_attend_once

IMPLEMENTATION = "elite_streamed"
"""Name under which transformers finds the function."""


class AttentionState(Protocol):
    """State of a step that a layer's call of the attention function reaches."""

    def compute(self, q: Tensor, k: Tensor, v: Tensor, rule: AttentionRule) -> Tensor:
        """Computes the attention of the present tile; shapes as in AttentionBackend."""


_active: AttentionState | None = None


def activate(state: AttentionState | None) -> None:
    """Sets the state for layers whose attention implementation is IMPLEMENTATION; None clears it."""
    global _active
    _active = state


_calls = [0]


@contextlib.contextmanager
def one_call(state: AttentionState, config: Any, layer: int, *, optional: bool = False) -> Iterator[None]:
    """Sets the state for the one call that a decoder layer makes within the context.

    Args:
        state: Computes the attention.
        config: Configuration of the model, for the error.
        layer: Number of the layer, for the error.
        optional: Whether the layer may make no call, because its tokens are coupled by a recurrent mixer.

    Raises:
        EliteError: MODEL_FAMILY_UNSUPPORTED, for a layer that calls the attention function never or again.
    """
    activate(state)
    _calls[0] = 0
    try:
        yield
    finally:
        activate(None)
    if _calls[0] != 1 and not (optional and not _calls[0]):
        raise does_not_attend_once(config, layer, _calls[0])


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
    rule = AttentionRule(
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=sliding_window,
        chunk=chunk_of(module),
        sinks=s_aux,
        softcap=softcap,
    )
    _calls[0] += 1
    out = _active.compute(query, key, value, rule)
    return out.transpose(1, 2).contiguous(), None  # as transformers' own functions return it: some layers view it


def register() -> None:
    """Registers IMPLEMENTATION with transformers."""
    from transformers import AttentionInterface

    # It has no mask function: transformers then makes no mask, for which it would wait for the GPU. Mask tiles keep the
    # documents apart.
    AttentionInterface.register(IMPLEMENTATION, _attention_function)
