"""fp32 master weights of a model that computes in 16 bits (mixed precision training, arXiv 1710.03740, section 3.1).

The small updates of fine-tuning would vanish in a 16-bit weight. The optimiser therefore updates the masters, and the
model gets rounded copies. Gradients are summed in fp32 (engine.models.wide_gradients).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from engine.models.wide_gradients import WideGradients

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class MasterWeights:
    """The trained weights of a model in fp32. A parameter that is fp32 already is its own master.

    Args:
        model: Model whose parameters that require gradients are trained. Tied parameters share one master.
        home: Device of the masters and their gradients, and so of the optimizer states.

    Attributes:
        parameters: Masters by the model's parameter names. `gradients.flush` moves a backward pass's gradients into
            their `.grad`.
        gradients: Sums the gradients of the narrow parameters.
    """

    def __init__(self, model: PreTrainedModel, home: torch.device) -> None:
        own = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.parameters: dict[str, nn.Parameter] = {
            name: p if p.dtype == torch.float32 else nn.Parameter(p.detach().to(home, torch.float32))
            for name, p in own.items()
        }
        self._copies = [(p, self.parameters[name]) for name, p in own.items() if self.parameters[name] is not p]
        self.gradients = WideGradients(own.values(), home, masters=dict(self._copies))

    @torch.no_grad()
    def publish(self) -> None:
        """Copies the masters into the model's parameters, rounded to their dtype."""
        for copy, master in self._copies:
            copy.copy_(master)

    @torch.no_grad()
    def load(self, values: Mapping[str, torch.Tensor]) -> None:
        """Loads values by name, in the masters' shapes, and rounds them into the model.

        Raises:
            KeyError: a name is missing or unknown.
            RuntimeError: a shape differs.
        """
        if values.keys() != self.parameters.keys():
            raise KeyError(f"weights of another model: {sorted(values.keys() ^ self.parameters.keys())[:3]}")
        for name, master in self.parameters.items():
            master.copy_(values[name])
        self.publish()
