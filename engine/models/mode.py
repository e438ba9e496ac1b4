"""Training mode or evaluation mode of a model that a step owns."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


class ModelMode:
    """Sets the mode of all modules where it is another one.

    torch sets the flag of every module every time: 4 ms for the 2,333 of a 28-layer model in an adapter, where a fast
    GPU's whole step of 8,192 tokens takes 180. To look at them takes 0.1 ms.

    Args:
        model: Whose modules stay the same ones from now on.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model, self._modules = model, list(model.modules())

    def train(self) -> None:
        """Dropout acts from now on."""
        if not all(module.training for module in self._modules):
            self._model.train()

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within, nothing is random; afterwards the mode is that of the model before."""
        training = self._model.training
        if any(module.training for module in self._modules):
            self._model.eval()
        try:
            yield
        finally:
            if training:
                self._model.train()
