"""Stands in for transformers' cache during one call of a recurrent mixer.

transformers' own cache writes states in place and without a graph. This one hands out the states at a tile's start,
which may be leaves of a graph, and takes those at its end with their graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

States = dict[tuple[str, int], Tensor]
"""State by kind ("conv" or "recurrent") and number: a convolution's last inputs (1, channels, kernel - 1), or a
recurrent state of any shape."""


class MixerCache:
    """Cache of one mixer over the tokens of one call, by the interface that transformers' layers use.

    Args:
        before: States after all earlier tokens of the document; empty at its start.
    """

    record_past = True
    "transformers then keeps away from its path for single tokens, which writes the convolution's state in place."

    def __init__(self, before: Mapping[tuple[str, int], Tensor] | None = None) -> None:
        self.before: States = dict(before or {})
        self.after: States = {}

    @property
    def layers(self) -> MixerCache:
        """Itself, as the cache of any layer."""
        return self

    def __getitem__(self, layer_idx: int) -> MixerCache:
        return self

    @property
    def conv_states(self) -> Mapping[int, Tensor | None]:
        """States of the convolutions by number, (1, channels, kernel - 1); None before the first."""
        return _ByNumber(self.before, "conv")

    @property
    def recurrent_states(self) -> Mapping[int, Tensor | None]:
        """Recurrent states by number, of any shape; None before the first."""
        return _ByNumber(self.before, "recurrent")

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:  # noqa: ARG002
        """Whether there are earlier tokens."""
        return bool(self.before)

    def is_recording_past(self, layer_idx: int | None = None) -> bool:  # noqa: ARG002
        """See `record_past`."""
        return self.record_past

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:  # noqa: ARG002
        """Returns a convolution's last inputs, (1, channels, kernel - 1); None at a document's start."""
        return self.before.get(("conv", state_idx))

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:  # noqa: ARG002
        """Returns a recurrent state, of any shape; None at a document's start."""
        return self.before.get(("recurrent", state_idx))

    def update_conv_state(
        self,
        conv_states: Tensor,
        layer_idx: int,  # noqa: ARG002
        state_idx: int = 0,
        conv_kernel_size: int | None = None,
        **_: Any,
    ) -> Tensor:
        """Takes a convolution's inputs (1, channels, tokens); returns them after the last inputs of earlier tokens.

        Raises:
            RuntimeError: the layer does not say how many inputs to keep.
        """
        if conv_kernel_size is None:
            raise RuntimeError("a recurrent layer does not say how wide its convolution is")
        width = conv_kernel_size - 1
        before = self.before.get(("conv", state_idx))
        if before is None:
            before = conv_states.new_zeros((*conv_states.shape[:-1], width))
        # Channels stay neighbours in memory, as the products write them and kernels of the convolution read them.
        full = torch.cat([before.transpose(1, 2), conv_states.transpose(1, 2)], dim=1).transpose(1, 2)
        self.after["conv", state_idx] = full[..., full.shape[-1] - width :]
        return full

    def update_recurrent_state(
        self,
        recurrent_states: Tensor,
        layer_idx: int,  # noqa: ARG002
        state_idx: int = 0,
        **_: Any,
    ) -> Tensor:
        """Takes the recurrent state after the last token, of any shape."""
        self.after["recurrent", state_idx] = recurrent_states
        return recurrent_states


class _ByNumber(Mapping[int, "Tensor | None"]):
    def __init__(self, states: States, kind: str) -> None:
        self._states, self._kind = states, kind

    def __getitem__(self, number: int) -> Tensor | None:
        return self._states.get((self._kind, number))

    def __iter__(self) -> Any:
        return (number for kind, number in self._states if kind == self._kind)

    def __len__(self) -> int:
        return sum(kind == self._kind for kind, _ in self._states)
