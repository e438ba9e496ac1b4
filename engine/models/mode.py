"""Switches a step's model between training and evaluation mode."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


class ModelMode:
    """Sets the mode of all modules, only if one of them is in another mode.

    torch sets the flag of every module on each call. That takes 4 ms for the 2,333 modules of a 28-layer model with an
    adapter, of the 180 ms that a fast GPU needs for a step of 8,192 tokens. Reading the flags takes 0.1 ms.

    Args:
        model: A model whose set of modules no longer changes.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model, self._modules = model, list(model.modules())

    def train(self) -> None:
        """Switches to training mode, in which dropout is active."""
        if not all(module.training for module in self._modules):
            self._model.train()

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Switches to evaluation mode, without random draws, and restores the model's mode on exit."""
        training = self._model.training
        if any(module.training for module in self._modules):
            self._model.eval()
        try:
            yield
        finally:
            if training:
                self._model.train()
