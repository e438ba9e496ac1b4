"""What one decoder layer holds while tokens pass through it, at each moment that can set the peak.

Derived from the order in which transformers' layers, this project's operations and liger's kernels allocate and free;
tests count the real allocations of every family and hold these lists against them (tests/plan/test_activations.py).
Bytes are those of one token (or of one key of a block), so a moment costs one product for any tile.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

from engine.models.spec import ModelSpec

Phase = Literal["forward", "loss", "backward"]
Held = tuple[tuple[str, int], ...]
"""Name and bytes of each tensor."""

LOGIT_BYTES = 12
"A logit in autograd's cross-entropy: log-probabilities, their gradient and the logits', each fp32."


@dataclass(frozen=True, kw_only=True)
class PeakCandidate:
    """Tensors that are alive together."""

    phase: Phase
    at: str
    "In words."
    token: Held
    "Bytes a token of the tile, or of the window where it is computed whole."
    key: Held = ()
    "Bytes a key: of the two blocks that follow one another in the backward pass, of the forward pass's longest block."
    logit: int = 0
    "Bytes a logit of one piece of the loss."
    fixed: Held = ()
    "Bytes, whatever the number of tokens."
    kept: Held = ()
    "Bytes a token of layers that wait for the backward pass as they are (`keep_layers`)."

    @functools.cached_property
    def token_bytes(self) -> int:
        """Of all its tensors, a token."""
        return sum(size for _, size in self.token)

    @functools.cached_property
    def key_bytes(self) -> int:
        """Of all its tensors, a key."""
        return sum(size for _, size in self.key)

    @functools.cached_property
    def fixed_bytes(self) -> int:
        """Of what does not depend on the number of tokens."""
        return sum(size for _, size in self.fixed)

    @functools.cached_property
    def kept_bytes(self) -> int:
        """Of layers that are kept, a token."""
        return sum(size for _, size in self.kept)

    def bytes(self, tokens: int, keys: int, logits: int) -> int:
        """Of everything held: tokens in flight, keys in the blocks of the moment's phase, logits in a piece."""
        a_token = self.token_bytes + self.kept_bytes
        return tokens * a_token + keys * self.key_bytes + logits * self.logit + self.fixed_bytes


class Widths:
    """Bytes a token of the tensors of one layer."""

    def __init__(self, spec: ModelSpec, element: int, rank: int, *, fused: bool, autocast: bool) -> None:
        self.spec, self.element, self.fused, self.autocast = spec, element, fused, autocast
        self.hidden = spec.hidden_size * element
        self.queries = spec.heads * spec.head_dim * element
        self.keys = spec.kv_heads * spec.head_dim * element
        self.mlp = spec.mlp_width * element
        self.wide = 4 // element
        "fp32, in units of an activation's own width."
        # The streamed step's factors are in halves, and what they project to is there twice.
        self.inner = rank * element * (1 if autocast or element == 4 else 2)
        self.logsumexp = 4 * spec.heads

    @property
    def one_norm(self) -> bool:
        """Attention and MLP side by side, from the same norm."""
        return self.spec.norms_per_layer == 1

    def norm_copies(self, norms: int) -> Held:
        """RMSNorm as transformers writes it keeps its input in fp32, and so does LayerNorm under autocast.

        LayerNorm without it and liger's RMSNorm keep the input itself.
        """
        as_it_is = not self.autocast if self.spec.norm_bias else self.fused
        if as_it_is or self.wide == 1:
            return ()
        return (("norms' inputs in fp32", norms * self.wide * self.hidden),)

    @property
    def head_norm_inputs(self) -> Held:
        """What the norms on each head's queries and keys keep."""
        if not self.spec.qk_norm:
            return ()
        width = 1 if self.fused else self.wide
        return (("queries and keys before their norm", width * (self.queries + self.keys)),)

    @property
    def rotated(self) -> Held:
        """Queries, keys and values as attention keeps them."""
        # A slice keeps the whole fused projection alive.
        values = self.queries + 2 * self.keys if self.spec.fused_projections else self.keys
        return (("queries", self.queries), ("keys and values", self.keys + values), *self.head_norm_inputs)

    @property
    def wide_gelu(self) -> bool:
        """Whether autocast, which has powers in fp32, widens most of an activation that is written out."""
        return self.wide > 1 and self.spec.family in _TANH_GELU

    @property
    def final(self) -> int:
        """The final norm's output."""
        return self.hidden * (self.wide if self.spec.norm_bias else 1)

    @property
    def expert_outputs(self) -> Held:
        """A token's outputs of the experts that it chose, which their weights multiply: kept for those weights."""
        return self._for_each_expert("experts' outputs", 1)

    @property
    def routed(self) -> Held:
        """What experts hold beside their MLPs at most: inputs, outputs, and outputs times their weights."""
        return self._for_each_expert("experts' inputs and outputs", 3)

    def _for_each_expert(self, name: str, copies: int) -> Held:
        count = copies * self.spec.experts_per_token if self.spec.sparse_layers else 0
        return ((name, count * self.hidden),) if count else ()

    @property
    def mlp_saved(self) -> int:
        """Tensors of the MLP's width that its backward pass needs, with the down projection's input."""
        if self.spec.gated_mlp:
            return 3 if self.fused else 4  # gate, up, their product; and the activation
        return 5 if self.spec.family in _TANH_GELU else 2

    @property
    def mlp_peak(self) -> int:
        """Most of them at once in the backward pass.

        Fused: the product's gradient beside the three. Else the down projection's input is gone, and the gradient of
        its own parts is there beside the product's: 4 - 1 + 3. The two-matrix MLPs: 2 + 1; 5 - 1 + 3.
        """
        if self.spec.gated_mlp:
            return 4 if self.fused else 6
        return 7 if self.spec.family in _TANH_GELU else 3

    @property
    def mlp_forward(self) -> int:
        """Most of them at once without a graph."""
        if self.spec.gated_mlp:
            return 3
        return 4 if self.spec.family in _TANH_GELU else 2


_TANH_GELU = ("phi",)
"""Families whose activation is written out as products and a tanh, each of which keeps its input."""
