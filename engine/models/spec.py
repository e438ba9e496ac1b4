"""ModelSpec, the shapes of a decoder and the parameter counts that follow from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Linear:
    """One linear layer of a decoder layer, by its name in the transformers module tree."""

    name: str
    inputs: int
    outputs: int
    bias: bool

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        return self.outputs * (self.inputs + self.bias)


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
    stored_in_4_bits: bool = False
    "Whether its files hold the linear layers only in bitsandbytes' 4 bits."

    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
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
    norm_bias: bool = False
    "Whether norms have a bias (LayerNorm) or not (RMSNorm)."
    norms_per_layer: int = 2
    qk_norm: bool = False
    "Norms on each head's queries and keys."
    qk_norm_of_all_heads: bool = False
    "Whether those norms are one over all heads' queries, and one over all keys."
    fused_projections: bool = False
    "Query, key and value in one linear layer, gate and up in another."
    linear_names: Sequence[str] = ()
    "Names of its output, up and down projections, where they are not its family's."
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

    @property
    def stretches(self) -> bool:
        """Whether YaRN can stretch its positions. It cannot if the model has a scaling of its own to replace."""
        return self.takes_yarn and self.rope_type == "default"

    def with_layers(self, layers: int) -> ModelSpec:
        """Returns the model with this many decoder layers and the same share of windowed ones."""
        full = round(layers * self.full_attention_layers / self.layers)
        return replace(self, layers=layers, full_attention_layers=full)

    @property
    def windowed_layers(self) -> int:
        """Layers that attend through the sliding window."""
        return 0 if self.sliding_window is None else max(0, self.layers - self.full_attention_layers)

    @cached_property
    def linears(self) -> tuple[Linear, ...]:
        """Linear layers of a decoder layer in execution order; of a layer without experts, if there is one.

        Experts are not linear layers. transformers keeps those of a layer in two tensors, which neither adapters nor
        4-bit storage touch.
        """
        return (*self._attention_linears, *(self._mlp_linears if self.sparse_layers < self.layers else ()))

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
        if self.linear_names:
            output, up, down = self.linear_names
            return output, up, down
        return _NAMES.get(self.family, ("o_proj", "up_proj", "down_proj"))

    def _over_layers(self, attention: int, mlp: int, sparse: int) -> int:
        """Sums over all layers the counts of attention, and of the MLP or the experts."""
        return self.layers * attention + (self.layers - self.sparse_layers) * mlp + self.sparse_layers * sparse

    @cached_property
    def _expert_parameters(self) -> int:
        """Parameters of one expert's gate, up and down projections."""
        return 3 * self.hidden_size * self.expert_size

    @cached_property
    def _router_parameters(self) -> int:
        return self.experts * self.hidden_size

    @cached_property
    def linear_parameters(self) -> int:
        """Parameters of the linear layers of the largest decoder layer, which 4-bit storage unpacks at once."""
        return _parameters(self.linears)

    @cached_property
    def quantised_parameters(self) -> int:
        """Parameters that a 4-bit model quantises, those of all decoder layers' linear layers."""
        return self._over_layers(_parameters(self._attention_linears), _parameters(self._mlp_linears), 0)

    @cached_property
    def multiplied_parameters(self) -> int:
        """Active parameters of all decoder layers; of the experts, only those that a token passes through."""
        sparse = self.experts_per_token * self._expert_parameters + self._router_parameters
        return self._over_layers(_parameters(self._attention_linears), _parameters(self._mlp_linears), sparse)

    @cached_property
    def adapted_width(self) -> int:
        """Inputs and outputs of all decoder layers' linear layers that take adapters."""
        attention, mlp = (
            sum(linear.inputs + linear.outputs for linear in linears)
            for linears in (self._attention_linears, self._mlp_linears)
        )
        return self._over_layers(attention, mlp if self.adapts_mlp else 0, 0)

    @cached_property
    def mlp_width(self) -> int:
        """Largest inner width of an MLP for one token, summed over the experts that it passes through."""
        dense = self.intermediate_size if self.sparse_layers < self.layers else 0
        return max(dense, self.experts_per_token * self.expert_size if self.sparse_layers else 0)

    @cached_property
    def largest_tensor(self) -> int:
        """Elements of the largest parameter of a decoder layer."""
        largest = max(linear.parameters for linear in self.linears)
        return max(largest, 2 * self.experts * self.expert_size * self.hidden_size if self.sparse_layers else 0)

    @cached_property
    def _norm_parameters(self) -> int:
        """Parameters of one decoder layer's norms."""
        normed = self.heads + self.kv_heads if self.qk_norm_of_all_heads else 2
        head_norms = normed * self.head_dim if self.qk_norm else 0
        return (self.norms_per_layer * self.hidden_size + head_norms) * (1 + self.norm_bias)

    @cached_property
    def layer_parameters(self) -> int:
        """Parameters of the largest decoder layer."""
        dense = _parameters(self._mlp_linears) if self.sparse_layers < self.layers else 0
        sparse = self.experts * self._expert_parameters + self._router_parameters if self.sparse_layers else 0
        return _parameters(self._attention_linears) + self._norm_parameters + max(dense, sparse)

    @cached_property
    def decoder_parameters(self) -> int:
        """Parameters of all decoder layers."""
        attention = _parameters(self._attention_linears) + self._norm_parameters
        sparse = self.experts * self._expert_parameters + self._router_parameters
        return self._over_layers(attention, _parameters(self._mlp_linears), sparse)

    @cached_property
    def embedding_parameters(self) -> int:
        """Parameters of the token embedding and the head; counted once if they are tied."""
        head = 0 if self.tied_embeddings else self.vocab_size * self.hidden_size
        return self.vocab_size * self.hidden_size + head + self.vocab_size * self.head_bias

    @cached_property
    def parameters(self) -> int:
        """All parameters of the base model."""
        final_norm = self.hidden_size * (1 + self.norm_bias)
        return self.decoder_parameters + self.embedding_parameters + final_norm

    def lora_parameters(self, rank: int, targets: Sequence[str] = ("all-linear",)) -> int:
        """Counts a LoRA adapter's parameters, rank · (inputs + outputs) for each adapted linear of each layer."""
        attention, mlp = (
            sum(rank * (e.inputs + e.outputs) for e in linears if "all-linear" in targets or e.name in targets)
            for linears in (self._attention_linears, self._mlp_linears)
        )
        return self._over_layers(attention, mlp if self.adapts_mlp else 0, 0)


def _parameters(linears: Sequence[Linear]) -> int:
    return sum(linear.parameters for linear in linears)


_NAMES = {
    "phi": ("dense", "fc1", "fc2"),
    "starcoder2": ("o_proj", "c_fc", "c_proj"),
}
"""Families that name their output, up and down projections differently."""
