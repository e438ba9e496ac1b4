"""StreamPlan: every choice of the streamed step, as one value. Pure data that the planner searches over."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

from engine.errors.planning import StreamPlanError

Home = Literal["gpu", "host", "disk"]
BaseWeights = Literal["resident", "nf4", "streamed", "nf4-streamed"]
"""Storage of the base weights: resident on the GPU or streamed from the host, in their own format or in 4 bits."""

EMBEDDED_AT_ONCE = 1024
"Tokens that are embedded at once where each layer takes an input of its own."
FORWARD_BLOCKS = 4
"Key blocks per attention call of the forward pass where keys and values are on the device."


@dataclass(frozen=True, kw_only=True)
class StreamPlan:
    """Layout in time and memory of one exact step over a long sequence (docs/architecture.md).

    All options give the same gradient, except `activation_bits` below 16, which is approximate.

    Raises:
        StreamPlanError: the options contradict each other; the message gives the reason.
    """

    tile: int = 4096
    "Tokens that pass through a layer at once."
    key_block: int = 32768
    "Keys per attention call; bounds every temporary, so that none is as long as the context."
    stash: bool = True
    "Save each layer's attention output and logsumexp, so that the backward pass never recomputes attention; keys and "
    "values too, where grouped heads make the two no larger than the output."
    checkpoint_every: int = 1
    "Hidden states of every k-th layer are kept; the layers between are recomputed."
    weights: BaseWeights = "resident"
    "Base weights resident on the GPU; resident in 4 bits; or streamed from the host, two layers at a time on the GPU, "
    "in their own format or in 4 bits."
    weights_home: Literal["host", "disk"] = "host"
    "Home of streamed 4-bit weights: pinned host memory, or the model's files, which are read a layer ahead."
    kv_home: Literal["gpu", "host"] = "gpu"
    "Home of one layer's keys, values and their gradients; on the host, GPU memory does not grow with context."
    hidden_home: Home = "host"
    "Home of hidden states between the passes."
    gradient_home: Home = None  # type: ignore[assignment]
    "Home of the gradient stream, which each layer of the backward pass reads and writes; unset: that of the hidden "
    "states."
    stash_home: Home = None  # type: ignore[assignment]
    "Home of the saved attention outputs, which are written and read once each; unset: that of the hidden states."
    activation_bits: Literal[16, 8, 4] = 16
    "Width of the stored hidden states; 8 and 4 are approximate (block-wise quantisation)."
    keep_layers: int = 0
    "Where the context is a single tile: the number of last layers whose activations stay on the GPU between the "
    "passes, and that are not recomputed."
    loss_piece: int = 1024
    "Tokens whose logits exist at once."
    attention: str = "auto"
    "Name of the attention backend; auto takes the fastest measured."

    def __post_init__(self) -> None:
        for name in ("stash_home", "gradient_home"):
            if vars(self)[name] is None:
                object.__setattr__(self, name, self.hidden_home)
        for field, (hint, allowed) in _hints().items():
            value = getattr(self, field)
            if allowed and value not in allowed:
                raise StreamPlanError(f"{field} must be one of {', '.join(map(str, allowed))}, not {value}")
            if not allowed and type(value) is not hint:
                raise StreamPlanError(f"{field} must be of type {hint.__name__}, not {value!r}")
        for name in ("tile", "key_block", "checkpoint_every", "loss_piece"):
            if getattr(self, name) < 1:
                raise StreamPlanError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.keep_layers < 0:
            raise StreamPlanError(f"keep_layers must be at least 0, not {self.keep_layers}")
        if self.keep_layers and streams(self.weights):
            raise StreamPlanError(
                "keep_layers with weights streamed: where weights do not fit on the GPU, activations do not"
            )
        if self.weights_home == "disk" and self.weights != "nf4-streamed":
            raise StreamPlanError(
                f"weights_home disk with weights {self.weights}: only streamed 4-bit weights are read from the disk"
            )
        if self.key_block < self.tile:
            raise StreamPlanError(
                f"key_block {self.key_block} is smaller than tile {self.tile}: a tile attends to itself in one call"
            )
        if self.kv_home == "host" and self.hidden_home == "gpu":
            raise StreamPlanError(
                "kv_home host with hidden_home gpu: hidden states of all layers are larger than "
                "one layer's keys and values; move the hidden states first"
            )
        if self.kv_home == "host" and self.gradient_home == "gpu":
            raise StreamPlanError(
                "kv_home host with gradient_home gpu: the gradient stream would grow with the context on the GPU; "
                "move it first"
            )
        if self.kv_home == "host" and self.stash and self.stash_home == "gpu":
            raise StreamPlanError(
                "kv_home host with stash_home gpu: saved attention outputs of all layers are larger than "
                "one layer's keys and values; move the outputs first"
            )

    @property
    def spills(self) -> bool:
        """Whether a step writes to the disk."""
        return "disk" in self.homes

    @property
    def homes(self) -> tuple[Home, ...]:
        """Homes of what waits between the passes: hidden states, their gradient, attention outputs if saved."""
        always = (self.hidden_home, self.gradient_home)
        return (*always, self.stash_home) if self.stash else always

    @property
    def streams_weights(self) -> bool:
        """Whether the decoder layers stay on the host, and two at a time are on the GPU."""
        return streams(self.weights)

    @property
    def four_bit_weights(self) -> bool:
        """Whether the decoder layers' linear weights are stored in 4 bits."""
        return in_4_bits(self.weights)

    @property
    def exact(self) -> bool:
        """Whether the gradient is that of whole-sequence backpropagation."""
        return self.activation_bits == 16


def streams(weights: BaseWeights) -> bool:
    """Whether weights of this storage stay on the host between uses."""
    return weights in ("streamed", "nf4-streamed")


def in_4_bits(weights: BaseWeights) -> bool:
    """Whether weights of this storage are in 4 bits."""
    return weights in ("nf4", "nf4-streamed")


def base_weights(*, four_bit: bool, streamed: bool) -> BaseWeights:
    """Returns the storage of these two properties."""
    if four_bit:
        return "nf4-streamed" if streamed else "nf4"
    return "streamed" if streamed else "resident"


@functools.cache
def _hints() -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Type and listed values of each field. Cached, since a planner makes thousands of plans."""
    return {field: (hint, get_args(hint)) for field, hint in get_type_hints(StreamPlan).items()}
