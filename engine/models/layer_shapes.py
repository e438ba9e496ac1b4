"""Shapes and counts of single decoder layers, of which a ModelSpec is made (engine.models.spec). Pure data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Linear:
    """One linear layer of a decoder layer, by its name in the transformers module tree."""

    name: str
    inputs: int
    outputs: int
    bias: bool
    adapted: bool = True
    "Whether `all-linear` puts an adapter on it."

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        return self.outputs * (self.inputs + self.bias)


@dataclass(frozen=True, kw_only=True)
class LayerKind:
    """Decoder layers of one build, as their modules hold them (engine.verify.observed_shape)."""

    layers: int
    "Number of layers of this build."
    linears: tuple[Linear, ...]
    others: int
    "Parameters outside the linear layers and the experts: norms, routers, biases of gates."
    matrices: int = 0
    "Of these, parameters of matrices, such as routers."
    experts: int = 0
    "Parameters of experts held together, which are no linear layers."
    chosen_experts: int = 0
    "Of these, parameters that one token passes through."
    experts_width: int = 0
    "Inputs and outputs of the experts' matrices, summed: parameters of their adapters of rank 1; 0 where experts are "
    "built otherwise than transformers' interface for them, which neither adapters nor 4-bit storage touch."
    largest: int
    "Elements of the largest parameter."

    @property
    def parameters(self) -> int:
        """All parameters of one such layer."""
        return parameters_of(self.linears) + self.others + self.experts

    @property
    def packed(self) -> int:
        """Parameters that 4-bit storage packs."""
        return parameters_of(self.linears) + (self.experts if self.experts_width else 0)


@dataclass(frozen=True, kw_only=True)
class LatentShape:
    """What layers store of a token in place of keys and values, which they expand when a tile reads them (MLA)."""

    stored: int
    "Numbers that are stored of a token."
    rank: int
    "Of these, numbers that are expanded; the others are the rotated part of every head's keys."
    expanded: int
    "Values of a token that the expansion's product gives, over all heads."


@dataclass(frozen=True, kw_only=True)
class LayerBytes:
    """Bytes per token that a decoder layer holds beside its input, without the attention kernel's own.

    Counted by engine.verify.observed_bytes with adapters of rank 1.
    """

    element: int
    "Bytes of one activation."
    forward: int
    "Largest number in a forward pass without a graph."
    forward_attention: int
    "When attention is computed in that pass."
    saved: int
    "What stays between forward and backward pass, the layer's output and the attention's included."
    backward: int
    "Largest number in a forward pass with a graph and the backward pass after it."
    backward_attention: int
    "When the backward pass of attention begins, the gradient of its output included."
    kernels: bool = False
    "Whether kernels compute its recurrent layers (engine.models.recurrent_kernels)."
    norms: bool = False
    "Whether a kernel computes its RMSNorms (engine.models.fused)."


@dataclass(frozen=True, kw_only=True)
class RecurrentShape:
    """Recurrent layers of a decoder (Gated DeltaNet, Mamba2, short convolutions)."""

    layers: int
    "Layers with a recurrent mixer."
    without_attention: int
    "Layers that do not attend, with a recurrent mixer or without."
    state_values: int
    "Numbers of a layer's recurrent state, fp32."
    conv_values: int
    "Numbers of its convolution's last inputs."
    channels: int
    "Values per token that the convolution mixes."


def parameters_of(linears: Sequence[Linear]) -> int:
    """Counts the weights and biases of linear layers."""
    return sum(linear.parameters for linear in linears)
