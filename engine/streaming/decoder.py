"""Splits a Hugging Face causal language model into embedding, decoder layers, final norm and head.

The layers are called as the model itself would call them. How a family calls them (rotary tables, one set a
layer type, masks) is observed rather than coded here. The model's own forward runs over a tile with its layers
replaced by recorders, which keep their arguments and return the hidden states unchanged.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engine import errors
from engine.models.families import DROPOUTS, require, setting_refusals
from engine.models.rope import ROPE_KEYS, fixed_rope_context, rope_type
from engine.models.rope_tables import keep_tables_exact


@dataclass(frozen=True, kw_only=True)
class AttentionShape:
    """Number of query heads and of KV heads, and the width of a head."""

    heads: int
    kv_heads: int
    head_dim: int


class _Recorder(nn.Module):
    """Stands in for a decoder layer, keeps its keyword arguments, and returns the hidden states unchanged."""

    arguments: dict[str, Any]

    def forward(self, hidden_states: Tensor, **arguments: Any) -> Tensor:
        self.arguments = arguments
        return hidden_states


class Decoder:
    """The parts of a causal language model, with or without a PEFT adapter.

    Raises:
        EliteError: MODEL_FAMILY_UNSUPPORTED, for a family or setting that would give a wrong result.
    """

    def __init__(self, model: nn.Module) -> None:
        wrapped: Any = model
        causal: Any = wrapped.get_base_model() if hasattr(model, "get_base_model") else model
        self.causal = causal
        self.config = causal.config
        _refuse_unsupported(self.config)
        keep_tables_exact(causal)
        self._base: Any = causal.get_decoder()
        self.layers: list[nn.Module] = list(self._base.layers)
        self.head: nn.Module = causal.get_output_embeddings()
        self.embedding: nn.Embedding = causal.get_input_embeddings()
        self._recorders = nn.ModuleList(_Recorder() for _ in self.layers)

    @property
    def attention_shape(self) -> AttentionShape:
        """Head counts and head width, from the configuration."""
        heads = self.config.num_attention_heads
        return AttentionShape(
            heads=heads,
            kv_heads=getattr(self.config, "num_key_value_heads", None) or heads,
            head_dim=getattr(self.config, "head_dim", None) or self.config.hidden_size // heads,
        )

    @property
    def widest_window(self) -> int | None:
        """Most keys that a query of any layer sees, from the configuration; None where a layer sees all."""
        if "full_attention" in (getattr(self.config, "layer_types", None) or ()):
            return None
        window: int | None = getattr(self.config, "sliding_window", None)
        return window

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""
        return int(self.config.hidden_size)

    @contextmanager
    def _recording(self) -> Iterator[None]:
        layers = self._base.layers
        self._base.layers = self._recorders
        try:
            yield
        finally:
            self._base.layers = layers

    def embed(self, token_ids: Tensor) -> Tensor:
        """Embeds token_ids (1, n) into the first layer's input, (1, n, hidden)."""
        return self.embedding(token_ids)  # type: ignore[no-any-return]

    def layer_arguments(self, hidden: Tensor, positions: Tensor) -> list[dict[str, Any]]:
        """Records the keyword arguments that the model passes to each layer for a tile.

        Args:
            hidden: Any tensor of the tile's shape, dtype and device, (1, n, hidden).
            positions: Positions of the tile's tokens, (1, n).
        """
        with self._recording(), torch.no_grad():
            self._base(inputs_embeds=hidden, position_ids=positions, use_cache=False)
        return [recorder.arguments for recorder in self._recorders]  # type: ignore[misc]

    @functools.cached_property
    def final_norm_parameters(self) -> list[nn.Parameter]:
        """Parameters between the last layer and the head."""
        inside = {id(p) for part in (*self.layers, self.embedding) for p in part.parameters()}
        return [p for p in self._base.parameters() if id(p) not in inside]

    def final_norm(self, hidden: Tensor) -> Tensor:
        """Normalises the last layer's output for the head, both (1, n, hidden); differentiable."""
        with self._recording():
            positions = torch.zeros((1, hidden.shape[1]), dtype=torch.long, device=hidden.device)
            output: Tensor = self._base(inputs_embeds=hidden, position_ids=positions, use_cache=False).last_hidden_state
        return output


def _refuse_unsupported(config: Any) -> None:
    require(config.model_type, "streamed")
    settings = config.to_dict()
    problem = setting_refusals(settings).get("streamed")
    for name in DROPOUTS:
        if settings.get(name):
            problem = f"{name} {settings[name]} would draw other numbers in the recomputation"
    if problem is not None:
        raise _unsupported(config, "the streamed step", problem, "a model without it")


def refuse_position_dependent_rope(config: Any, context: int) -> None:
    """Refuses rotary tables that depend on the length of the input, which a tile does not know.

    Raises:
        EliteError: MODEL_FAMILY_UNSUPPORTED.
    """
    settings = {name: getattr(config, name, None) for name in ROPE_KEYS}
    fixed = fixed_rope_context(settings)
    if fixed is not None and context > fixed:
        feature = f"a context of {context:,} tokens"
        problem = f"its rotary tables ({rope_type(settings)}) change with the length"
        raise _unsupported(config, feature, problem, f"a context up to {fixed:,}, or a model with YaRN")


def _unsupported(config: Any, feature: str, problem: str, supported: str) -> errors.EliteError:
    return errors.MODEL_FAMILY_UNSUPPORTED(
        family=config.model_type, feature=feature, problem=problem, supported=supported
    )
