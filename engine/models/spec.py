"""ModelSpec, the shapes of a decoder and the parameter counts that follow from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from engine.models.attended import AttendedShape, shared_out
from engine.models.layer_shapes import LatentShape, LayerBytes, LayerKind, Linear, RecurrentShape, parameters_of

EXPERTS = "experts"
"""Name, among the targets of an adapter, of the matrices of all experts."""


def rank_of_experts(rank: int, chosen: int, asked: int | None = None) -> int:
    """Rank of an adapter on each expert: as asked, or the rank divided by the experts that a token passes through.

    A token then meets as much of the adapter in experts as in an MLP (Schulman, LoRA Without Regret, 2025).
    """
    return asked or max(1, rank // max(1, chosen))


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Shapes of a decoder-only transformer, as pure data that suffices to plan a run without the weights."""

    name: str
    family: str
    "transformers' model_type."
    licence: str
    "Identifier as on the hub; unknown for a local directory that does not say."
    hub_id: str | None = None
    path: Path | None = None
    "Local directory that the weights are in."
    published_parameters: int | None = None
    released: str = ""
    "Year and month, such as 2025-07; empty where the catalogue does not say."
    template: str = ""
    "base, or chat where its tokenizer has a chat template; empty where the catalogue does not say."
    fim: bool = False
    "Whether its tokenizer has tokens for fill-in-the-middle."
    source: str = ""
    "Public text that its shapes were read from; empty for a model that is not in the catalogue."
    stored_in_4_bits: bool = False
    "Whether its files hold the linear layers only in bitsandbytes' 4 bits."

    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    "Width of a head; of its keys or its values, whichever is wider."
    value_dim: int | None = None
    "Width of a head's values; None if it is that of the head."
    latent: LatentShape | None = None
    "What is stored of a token in place of keys and values; None if nothing is."
    intermediate_size: int
    vocab_size: int
    tied_embeddings: bool
    max_context: int
    "Positions that it was trained with; longer contexts work, at a quality that fine-tuning must recover."
    fixed_rope_context: int | None = None
    "Longest context whose rotary tables do not change with its length; None if they never do."
    sliding_window: int | None = None
    "Tokens that a windowed layer attends to; None if every layer has full attention."
    full_attention_layers: int
    "Layers without the sliding window."
    rope_type: str = "default"
    "RoPE scaling in its own files."
    takes_yarn: bool = True
    "Whether its family can be stretched by YaRN, if its files have no scaling."
    not_streamed: str | None = None
    "Why a setting of this model rules out the streamed step; None if nothing does."

    gated_mlp: bool = True
    attention_bias: bool = False
    "Bias in the query, key and value projections."
    output_bias: bool = False
    "Bias in the attention's output projection."
    mlp_bias: bool = False
    head_bias: bool = False
    whole_head: bool = False
    "Whether it scales or caps its logits after the last linear layer (engine.models.lm_head)."
    caps_logits: bool = True
    "Whether such a head caps them, as far as is known; one that scales them holds less."
    norm_bias: bool = False
    "Whether norms have a bias (LayerNorm) or not (RMSNorm)."
    norms_per_layer: int = 2
    qk_norm: bool = False
    "Norms on each head's queries and keys."
    qk_norm_of_all_heads: bool = False
    "Whether those norms are one over all heads' queries, and one over all keys."
    fused_projections: bool = False
    "Query, key and value in one linear layer, gate and up in another."
    fused_mlp: bool = False
    "Gate and up in one linear layer, where query, key and value are not."
    sparse_layers: int = 0
    "Layers with experts in place of the MLP, of which each token passes through a few."
    experts: int = 0
    "Experts in each of those layers."
    experts_per_token: int = 0
    expert_size: int = 0
    "Width of one expert's MLP, which is gated and has no bias."
    adapts_mlp: bool = True
    "Whether adapters go on the linear layers of MLPs; in families with experts they stay on attention."
    # What a name and sizes tell apart anyway is left out of the hash, of which a planner takes thousands.
    kinds: tuple[LayerKind, ...] = field(default=(), hash=False)
    "Its decoder layers as they are built, where its family is not listed; the fields above then only describe them."
    outside: int = 0
    "Parameters outside the decoder layers, where `kinds` is given."
    counted: tuple[LayerBytes, ...] = field(default=(), hash=False)
    "What its largest layer holds, where `kinds` is given; entries for widths of activations and kernels."

    attended: tuple[AttendedShape, ...] = field(default=(), hash=False)
    "The attention of its layers, where layers differ in more than the window; else the fields above describe it."
    softcap: float | None = None
    "Bound of its attention scores; None for none."
    streams: int = 1
    "Hidden states of a token that a layer takes and gives, each of hidden_size."
    layer_input: int = 0
    "Width of the input that each layer takes beside the hidden states (per-layer embeddings); 0 for none."
    recurrent: RecurrentShape | None = None
    "Its recurrent layers; None if there are none."
    settings: tuple[tuple[str, Any], ...] = field(default=(), hash=False)
    "Keys and values of its config.json, for a model of the catalogue whose family is not listed."

    @property
    def stored_width(self) -> int:
        """Values of a token's keys and values, or latents, in one layer."""
        if self.latent is not None:
            return self.latent.stored
        return self.kv_heads * (self.head_dim + (self.value_dim or self.head_dim))

    @property
    def output_width(self) -> int:
        """Values of a token's attention output in one layer."""
        return self.heads * (self.value_dim or self.head_dim)

    @property
    def layer_table(self) -> int:
        """Parameters of the table of its layers' own inputs; 0 where they have none."""
        return self.vocab_size * self.layers * self.layer_input

    @property
    def hidden_width(self) -> int:
        """Values of a token between two layers."""
        return self.streams * self.hidden_size

    @cached_property
    def attentions(self) -> tuple[AttendedShape, ...]:
        """The attention of its layers, by kind."""
        if self.attended:
            return self.attended
        latent = None if self.latent is None else self.latent.stored
        windowed = min(self.windowed_layers, self.attending_layers)
        value_dim = self.value_dim or self.head_dim
        kind = AttendedShape(
            layers=windowed,
            heads=self.heads,
            kv_heads=self.kv_heads,
            key_dim=self.head_dim,
            value_dim=value_dim,
            window=self.sliding_window,
            latent=latent,
        )
        whole = replace(kind, layers=self.attending_layers - windowed, window=None)
        return tuple(each for each in (kind, whole) if each.layers)

    @property
    def attending_layers(self) -> int:
        """Layers with attention."""
        return self.layers - (0 if self.recurrent is None else self.recurrent.without_attention)

    @property
    def stretches(self) -> bool:
        """Whether YaRN can stretch its positions. It cannot if the model has a scaling of its own to replace."""
        return self.takes_yarn and self.rope_type == "default"

    def with_layers(self, layers: int) -> ModelSpec:
        """Returns the model with this many decoder layers and the same share of windowed ones."""
        full = round(layers * self.full_attention_layers / self.layers)
        found = self.recurrent
        if found is not None:
            kept, alone = (round(layers * count / self.layers) for count in (found.layers, found.without_attention))
            found = replace(found, layers=kept, without_attention=alone)
        kinds, left = [], layers
        for number, kind in enumerate(self.kinds):
            last = number == len(self.kinds) - 1
            share = left if last else min(left, round(layers * kind.layers / self.layers))
            left -= share
            kinds.append(replace(kind, layers=share))
        built = tuple(kind for kind in kinds if kind.layers)
        attended = shared_out(self.attended, layers)
        return replace(self, layers=layers, full_attention_layers=full, kinds=built, recurrent=found, attended=attended)

    @property
    def windowed_layers(self) -> int:
        """Layers that attend through the sliding window."""
        return 0 if self.sliding_window is None else max(0, self.layers - self.full_attention_layers)

    @cached_property
    def built(self) -> tuple[LayerKind, ...]:
        """Its decoder layers, by build: as they were observed, or as its fields describe them."""
        if self.kinds:
            return self.kinds
        attention = self._attention_linears
        mlp = tuple(replace(linear, adapted=self.adapts_mlp) for linear in self._mlp_linears)
        norms, router = self._norm_parameters, self.experts * self.hidden_size
        dense = LayerKind(
            layers=self.layers - self.sparse_layers,
            linears=(*attention, *mlp),
            others=norms,
            largest=max(linear.parameters for linear in (*attention, *mlp)),
        )
        expert = 3 * self.hidden_size * self.expert_size
        sparse = LayerKind(
            layers=self.sparse_layers,
            linears=attention,
            others=norms + router,
            matrices=router,
            experts=self.experts * expert,
            chosen_experts=self.experts_per_token * expert,
            experts_width=self.experts * (3 * self.expert_size + 2 * self.hidden_size),
            largest=max(2 * self.experts * self.expert_size * self.hidden_size, *(e.parameters for e in attention)),
        )
        return tuple(kind for kind in (dense, sparse) if kind.layers)

    def _over_layers(self, of_a_kind: Callable[[LayerKind], int]) -> int:
        """Sums over all layers."""
        return sum(kind.layers * of_a_kind(kind) for kind in self.built)

    @cached_property
    def linears(self) -> tuple[Linear, ...]:
        """Linear layers of a decoder layer in execution order; of the build that has the most in them.

        Experts are not linear layers. transformers keeps those of a layer in two tensors.
        """
        return max(self.built, key=lambda kind: parameters_of(kind.linears)).linears

    @cached_property
    def _attention_linears(self) -> tuple[Linear, ...]:
        queries, keys, d = self.heads * self.head_dim, self.kv_heads * self.head_dim, self.hidden_size
        bias = self.attention_bias
        output = Linear(name=self._names[0], inputs=queries, outputs=d, bias=self.output_bias)
        if self.fused_projections:
            return Linear(name="qkv_proj", inputs=d, outputs=queries + 2 * keys, bias=bias), output
        return (
            Linear(name="q_proj", inputs=d, outputs=queries, bias=bias),
            Linear(name="k_proj", inputs=d, outputs=keys, bias=bias),
            Linear(name="v_proj", inputs=d, outputs=keys, bias=bias),
            output,
        )

    @cached_property
    def _mlp_linears(self) -> tuple[Linear, ...]:
        d, m, bias = self.hidden_size, self.intermediate_size, self.mlp_bias
        _, up, down = self._names
        end = Linear(name=down, inputs=m, outputs=d, bias=bias)
        if self.fused_projections or self.fused_mlp:
            return Linear(name="gate_up_proj", inputs=d, outputs=2 * m, bias=bias), end
        gate = (Linear(name="gate_proj", inputs=d, outputs=m, bias=bias),) if self.gated_mlp else ()
        return (*gate, Linear(name=up, inputs=d, outputs=m, bias=bias), end)

    @property
    def _names(self) -> tuple[str, str, str]:
        return _NAMES.get(self.family, ("o_proj", "up_proj", "down_proj"))

    @cached_property
    def linear_parameters(self) -> int:
        """Parameters of the linear layers and experts of a decoder layer, which 4-bit storage unpacks at once."""
        return max(kind.packed for kind in self.built)

    @cached_property
    def quantised_parameters(self) -> int:
        """Parameters that a 4-bit model quantises, those of all decoder layers' linear layers and experts."""
        return self._over_layers(lambda kind: kind.packed)

    @cached_property
    def multiplied_parameters(self) -> int:
        """Active parameters of all decoder layers; of the experts, only those that a token passes through."""
        return self._over_layers(lambda kind: parameters_of(kind.linears) + kind.matrices + kind.chosen_experts)

    @cached_property
    def adapted_width(self) -> int:
        """Inputs and outputs of all decoder layers' linear layers that take adapters."""
        return self.lora_parameters(1)

    @cached_property
    def mlp_width(self) -> int:
        """Largest inner width of an MLP for one token, summed over the experts that it passes through."""
        dense = self.intermediate_size if self.sparse_layers < self.layers else 0
        return max(dense, self.experts_per_token * self.expert_size if self.sparse_layers else 0)

    @cached_property
    def largest_tensor(self) -> int:
        """Elements of the largest parameter of a decoder layer."""
        return max(kind.largest for kind in self.built)

    @cached_property
    def _norm_parameters(self) -> int:
        """Parameters of one decoder layer's norms."""
        normed = self.heads + self.kv_heads if self.qk_norm_of_all_heads else 2
        head_norms = normed * self.head_dim if self.qk_norm else 0
        return (self.norms_per_layer * self.hidden_size + head_norms) * (1 + self.norm_bias)

    @cached_property
    def layer_parameters(self) -> int:
        """Parameters of the largest decoder layer."""
        return max(kind.parameters for kind in self.built)

    @cached_property
    def decoder_parameters(self) -> int:
        """Parameters of all decoder layers."""
        return self._over_layers(lambda kind: kind.parameters)

    @cached_property
    def embedding_parameters(self) -> int:
        """Parameters of the token embedding and the head; counted once if they are tied."""
        head = 0 if self.tied_embeddings else self.vocab_size * self.hidden_size
        return self.vocab_size * self.hidden_size + head + self.vocab_size * self.head_bias

    @cached_property
    def parameters(self) -> int:
        """All parameters of the base model."""
        final_norm = self.hidden_size * (1 + self.norm_bias)
        return self.decoder_parameters + (self.outside if self.kinds else self.embedding_parameters + final_norm)

    def lora_parameters(
        self, rank: int, targets: Sequence[str] = ("all-linear",), expert_rank: int | None = None
    ) -> int:
        """Counts a LoRA adapter's parameters, rank · (inputs + outputs) for each adapted matrix of each layer.

        Args:
            rank: Rank on linear layers.
            targets: Names of linear layers, all-linear, experts.
            expert_rank: Rank on experts; None for `rank_of_experts`.
        """
        of_experts = rank_of_experts(rank, self.experts_per_token, expert_rank) if EXPERTS in targets else 0

        def of_a_layer(kind: LayerKind) -> int:
            adapted = [e for e in kind.linears if e.adapted and ("all-linear" in targets or e.name in targets)]
            on_linears = sum(rank * (linear.inputs + linear.outputs) for linear in adapted)
            return on_linears + of_experts * kind.experts_width

        return self._over_layers(of_a_layer)

    def multiplied_lora(self, rank: int, targets: Sequence[str], expert_rank: int | None = None) -> int:
        """Counts the adapter's parameters that a token passes through; arguments as for `lora_parameters`."""
        on_linears = self.lora_parameters(rank, [name for name in targets if name != EXPERTS])
        on_experts = self.lora_parameters(rank, targets, expert_rank) - on_linears
        return on_linears + on_experts * self.experts_per_token // max(1, self.experts)

    def counted_in(self, element: int, *, kernels: bool = False, norms: bool = False) -> LayerBytes | None:
        """What its largest layer holds with activations of this many bytes; None where lists describe its family.

        Args:
            element: Bytes of an activation.
            kernels: Whether kernels compute its recurrent layers; counted where it has such layers.
            norms: Whether a kernel computes its RMSNorms; counted where it has some that the kernel can.
        """
        fitting = [each for each in self.counted if each.element == element]
        return max(fitting, key=lambda each: (each.kernels == kernels, each.norms == norms), default=None)


_NAMES = {
    "phi": ("dense", "fc1", "fc2"),
    "starcoder2": ("o_proj", "c_fc", "c_proj"),
}
"""Families that name their output, up and down projections differently."""


def as_spec(shape: Mapping[str, Any], *, name: str, family: str, hub_id: str | None = None) -> ModelSpec:
    """Builds the ModelSpec whose fields a proof keeps as JSON.

    Raises:
        ValueError: a field is missing, or has a value of another type.
    """
    fields = {"name": name, "family": family, "licence": "unknown", "hub_id": hub_id}
    return msgspec.convert({**shape, **fields}, type=ModelSpec)
