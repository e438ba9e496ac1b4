"""Lookahead (arXiv 1907.08610): slow weights that follow the optimiser's from afar, and pull them back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter


class Lookahead:
    """Every k updates: slow += alpha (fast - slow), and fast = slow.

    Args:
        parameters: The fast weights, which the optimiser changes.
        steps: k.
        alpha: Share of the way.
    """

    def __init__(self, parameters: Mapping[str, Parameter], steps: int, alpha: float) -> None:
        self._fast, self._steps, self._alpha = dict(parameters), steps, alpha
        self._slow = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        self._made = 0

    @torch.no_grad()
    def after_step(self) -> None:
        """The optimiser has made an update."""
        self._made += 1
        if self._made % self._steps:
            return
        for name, fast in self._fast.items():
            slow = self._slow[name]
            slow.lerp_(fast, self._alpha)
            fast.copy_(slow)

    def state_dict(self) -> dict[str, Any]:
        """Slow weights by name, and the updates made."""
        return {**self._slow, "made": self._made}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes on what `state_dict` gave."""
        self._made = int(state["made"])
        for name, slow in self._slow.items():
            value: Tensor = state[name]
            slow.copy_(value)
