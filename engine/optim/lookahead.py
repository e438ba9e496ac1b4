"""Lookahead (arXiv 1907.08610), whose slow weights follow the optimiser's fast weights and reset them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter


class Lookahead:
    """Applies slow += alpha (fast - slow), and then fast = slow, every k updates.

    Args:
        parameters: The fast weights, which the optimiser updates.
        steps: k.
        alpha: Step size of the slow weights.
    """

    def __init__(self, parameters: Mapping[str, Parameter], steps: int, alpha: float) -> None:
        self._fast, self._steps, self._alpha = dict(parameters), steps, alpha
        self._slow = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        self._made = 0

    @torch.no_grad()
    def after_step(self) -> None:
        """Counts an update of the optimiser, and synchronises the weights after every k-th."""
        self._made += 1
        if self._made % self._steps:
            return
        for name, fast in self._fast.items():
            slow = self._slow[name]
            slow.lerp_(fast, self._alpha)
            fast.copy_(slow)

    def state_dict(self) -> dict[str, Any]:
        """Returns the slow weights by name, and the number of updates made."""
        return {**self._slow, "made": self._made}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""
        self._made = int(state["made"])
        for name, slow in self._slow.items():
            value: Tensor = state[name]
            slow.copy_(value)
