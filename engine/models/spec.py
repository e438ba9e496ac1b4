"""ModelSpec: the architecture of a decoder as numbers, and the parameter counts that follow from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
    """Shapes of a decoder-only transformer. Pure data: enough to plan a run without the weights."""

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
    "Whether its files hold the linear layers in bitsandbytes' 4 bits only."

    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    tied_embeddings: bool
    max_context: int
    "Positions that it was trained with; longer contexts work, at a quality that fine-tuning must win back."
    fixed_rope_context: int | None = None
    "Longest context whose rotary tables do not change with its length; None where they never do."
    sliding_window: int | None = None
    "Tokens that a windowed layer attends to; None where every layer attends to everything before it."
    full_attention_layers: int
    "Layers without the sliding window."

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
    fused_projections: bool = False
    "Query, key and value in one linear layer, gate and up in another."

    @cached_property
    def linears(self) -> tuple[Linear, ...]:
        """The linear layers of one decoder layer, in the order in which they run."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        d, m = self.hidden_size, self.intermediate_size
        bias, mlp_bias = self.attention_bias, self.mlp_bias
        output_name, up_name, down_name = _NAMES.get(self.family, ("o_proj", "up_proj", "down_proj"))
        output = Linear(name=output_name, inputs=queries, outputs=d, bias=self.output_bias)
        down = Linear(name=down_name, inputs=m, outputs=d, bias=mlp_bias)
        if self.fused_projections:
            return (
                Linear(name="qkv_proj", inputs=d, outputs=queries + 2 * keys, bias=bias),
                output,
                Linear(name="gate_up_proj", inputs=d, outputs=2 * m, bias=mlp_bias),
                down,
            )
        gate = (Linear(name="gate_proj", inputs=d, outputs=m, bias=mlp_bias),) if self.gated_mlp else ()
        return (
            Linear(name="q_proj", inputs=d, outputs=queries, bias=bias),
            Linear(name="k_proj", inputs=d, outputs=keys, bias=bias),
            Linear(name="v_proj", inputs=d, outputs=keys, bias=bias),
            output,
            *gate,
            Linear(name=up_name, inputs=d, outputs=m, bias=mlp_bias),
            down,
        )

    @cached_property
    def linear_parameters(self) -> int:
        """Parameters of one decoder layer's linear layers: what a 4-bit model quantises."""
        return sum(linear.parameters for linear in self.linears)

    @cached_property
    def layer_parameters(self) -> int:
        """Parameters of one decoder layer."""
        norm = self.hidden_size * (1 + self.norm_bias)
        head_norms = 2 * self.head_dim * (1 + self.norm_bias) if self.qk_norm else 0
        return self.linear_parameters + self.norms_per_layer * norm + head_norms

    @cached_property
    def embedding_parameters(self) -> int:
        """Parameters of the token embedding and the head; counted once where they are tied."""
        head = 0 if self.tied_embeddings else self.vocab_size * self.hidden_size
        return self.vocab_size * self.hidden_size + head + self.vocab_size * self.head_bias

    @cached_property
    def parameters(self) -> int:
        """All parameters of the base model."""
        final_norm = self.hidden_size * (1 + self.norm_bias)
        return self.layers * self.layer_parameters + self.embedding_parameters + final_norm

    def lora_parameters(self, rank: int, targets: Sequence[str] = ("all-linear",)) -> int:
        """Parameters of a LoRA adapter: rank · (inputs + outputs) for each adapted linear layer of each layer."""
        chosen = [linear for linear in self.linears if "all-linear" in targets or linear.name in targets]
        return self.layers * sum(rank * (linear.inputs + linear.outputs) for linear in chosen)


_NAMES = {
    "phi": ("dense", "fc1", "fc2"),
    "starcoder2": ("o_proj", "c_fc", "c_proj"),
}
"""Families that name their output, up and down projections differently."""
