"""Tensors that one decoder layer holds while tokens pass through it, for each moment that can set the memory peak.

The lists follow the order in which transformers' layers, this project's operations and liger's kernels allocate and
free. Tests count the real allocations of every listed family and compare them (tests/plan/test_activations.py). A layer
of another family was counted when it was admitted (ModelSpec.counted); the lists add what attention kernels, adapters
and homes hold. Sizes are bytes per token (or per key of a block), so one candidate costs one product for any tile.
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
"Bytes of a logit in autograd's cross-entropy: log-probabilities, their gradient and the logits' gradient, each fp32."


@dataclass(frozen=True, kw_only=True)
class PeakCandidate:
    """Tensors that are alive at the same time."""

    phase: Phase
    at: str
    "Stage of the phase, in words."
    token: Held
    "Bytes per token of the tile, or of the window where it is computed whole."
    key: Held = ()
    "Bytes per key: of the two consecutive blocks in the backward pass, of the longest block in the forward pass."
    logit: int = 0
    "Bytes per logit of one loss chunk."
    fixed: Held = ()
    "Bytes that do not depend on the number of tokens."
    kept: Held = ()
    "Bytes per token of layers whose saved tensors stay resident until the backward pass (`keep_layers`)."

    @functools.cached_property
    def token_bytes(self) -> int:
        """Bytes per token of `token`."""
        return sum(size for _, size in self.token)

    @functools.cached_property
    def key_bytes(self) -> int:
        """Bytes per key of `key`."""
        return sum(size for _, size in self.key)

    @functools.cached_property
    def fixed_bytes(self) -> int:
        """Bytes of `fixed`."""
        return sum(size for _, size in self.fixed)

    @functools.cached_property
    def kept_bytes(self) -> int:
        """Bytes per token of `kept`."""
        return sum(size for _, size in self.kept)

    def bytes(self, tokens: int, keys: int, logits: int) -> int:
        """Sums all tensors for tokens in flight, keys in the blocks of this phase and logits in one loss chunk."""
        a_token = self.token_bytes + self.kept_bytes
        return tokens * a_token + keys * self.key_bytes + logits * self.logit + self.fixed_bytes


class Widths:
    """Bytes per token of the tensors of one layer."""

    def __init__(
        self,
        spec: ModelSpec,
        element: int,
        rank: int,
        *,
        fused: bool,
        autocast: bool,
        served: bool = False,
        kernels: bool = False,
    ) -> None:
        self.spec, self.element, self.fused, self.autocast = spec, element, fused, autocast
        self._fused_norms = fused or (served and not spec.norm_bias)
        self.hidden = spec.hidden_width * element
        self.queries = spec.heads * spec.head_dim * element
        self.keys = spec.kv_heads * spec.head_dim * element
        self.output = spec.output_width * element
        self.mlp = spec.mlp_width * element
        self.wide = 4 // element
        "Size of fp32 in units of an activation's element."
        self.own_inputs = spec.layers * spec.layer_input * element
        "Inputs that all layers take beside the hidden states."
        self.own_copies = 2 + 6 * self.wide
        "Tensors of their size in the backward pass of what computes them."
        # The streamed step splits each 16-bit factor in two (rounded value, remainder), so its projection exists twice.
        self.inner = rank * element * (1 if autocast or element == 4 else 2)
        self.logsumexp = 4 * spec.heads
        self.counted = spec.counted_in(element, kernels=kernels, norms=fused or served)
        "What a layer of a family without a list was seen to hold; its attention's output is among what it saves."

    @property
    def one_norm(self) -> bool:
        """Whether attention and MLP run in parallel on the output of one norm."""
        return self.spec.norms_per_layer == 1

    def norm_copies(self, norms: int) -> Held:
        """Lists the fp32 copies of norm inputs that the backward pass needs.

        RMSNorm as transformers writes it saves its input in fp32, and so does LayerNorm under autocast. LayerNorm
        without autocast and liger's RMSNorm save the input itself.
        """
        as_it_is = not self.autocast if self.spec.norm_bias else self._fused_norms
        if as_it_is or self.wide == 1:
            return ()
        return (("norms' inputs in fp32", norms * self.wide * self.hidden),)

    @property
    def head_norm_inputs(self) -> Held:
        """Inputs that the norms on each head's queries and keys save."""
        if not self.spec.qk_norm:
            return ()
        width = 1 if self._fused_norms else self.wide
        return (("queries and keys before their norm", width * (self.queries + self.keys)),)

    @property
    def rotated(self) -> Held:
        """Queries, keys and values as attention saves them."""
        # A slice keeps the whole fused projection alive.
        values = self.queries + 2 * self.keys if self.spec.fused_projections else self.keys
        return (("queries", self.queries), ("keys and values", self.keys + values), *self.head_norm_inputs)

    @property
    def wide_gelu(self) -> bool:
        """Whether autocast, which computes powers in fp32, widens most of an activation written out as products."""
        return self.wide > 1 and self.spec.family in _TANH_GELU

    @property
    def final(self) -> int:
        """Bytes per token of the final norm's output."""
        return self.hidden * (self.wide if self.spec.norm_bias else 1)

    @property
    def expert_outputs(self) -> Held:
        """Outputs of a token's chosen experts, saved for the gradient of their routing weights."""
        return self._for_each_expert("experts' outputs", 1)

    @property
    def routed(self) -> Held:
        """Tensors of experts beside their MLPs at the peak: inputs, outputs, and outputs times routing weights."""
        return self._for_each_expert("experts' inputs and outputs", 3)

    def _for_each_expert(self, name: str, copies: int) -> Held:
        count = copies * self.spec.experts_per_token if self.spec.sparse_layers else 0
        return ((name, count * self.hidden),) if count else ()

    @property
    def chosen(self) -> int:
        """Inputs, or outputs, of the experts that a token passes through; 0 without experts."""
        return self.spec.experts_per_token * self.hidden if self.spec.sparse_layers else 0

    @property
    def inside(self) -> int:
        """Inner values of the experts that a token passes through; 0 without experts."""
        return self.spec.experts_per_token * self.spec.expert_size * self.element if self.spec.sparse_layers else 0

    def adapted_experts(self) -> Held:
        """Lists what adapters on experts keep for the backward pass: the inputs of both products of each expert."""
        return (("inputs of the experts' adapters", self.chosen + self.inside),)

    @property
    def experts_saved(self) -> int:
        """What frozen experts keep (engine.models.experts): gate and up, the activation, and their outputs."""
        return 3 * self.inside + self.chosen

    @property
    def experts_peak(self) -> int:
        """The most that frozen experts hold in the backward pass, what they keep included."""
        return 3 * self.inside + 3 * self.chosen

    def experts_forward(self, *, adapted: bool) -> int:
        """The most that frozen experts hold without a graph: sorted rows, or an activation and its factors."""
        gathered = 2 * self.chosen + self.hidden
        product = self.chosen + (4 if adapted else 2) * self.inside
        return max(gathered, product, 4 * self.inside)

    @property
    def mlp_saved(self) -> int:
        """Number of MLP-wide tensors that the MLP's backward pass needs, the down projection's input included."""
        if self.spec.gated_mlp:
            return 3 if self.fused else 4  # gate, up, their product; and the activation
        return 5 if self.spec.family in _TANH_GELU else 2

    @property
    def mlp_peak(self) -> int:
        """Largest number of MLP-wide tensors alive at once in the backward pass.

        Fused: the product's gradient beside the three. Otherwise the down projection's input is freed, and the
        gradients of its factors exist beside the product's: 4 - 1 + 3. Two-matrix MLPs: 2 + 1, and 5 - 1 + 3 where the
        activation is written out.
        """
        if self.spec.gated_mlp:
            return 4 if self.fused else 6
        return 7 if self.spec.family in _TANH_GELU else 3

    @property
    def mlp_forward(self) -> int:
        """Largest number of MLP-wide tensors alive at once without a graph."""
        if self.spec.gated_mlp:
            return 3
        return 4 if self.spec.family in _TANH_GELU else 2


_TANH_GELU = ("phi",)
"""Families whose activation is written out as products and a tanh, each of which saves its input."""
