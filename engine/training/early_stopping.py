"""Early stopping. Ends a run whose held-out loss no longer falls, and keeps the best adapter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import Parameter


class EarlyStopping:
    """Tracks the evaluations of a run.

    Args:
        parameters: Parameters to keep from the best evaluation, by name.
        patience: Evaluations without a lower loss after which the run should end.
    """

    def __init__(self, parameters: Mapping[str, Parameter], patience: int) -> None:
        self._live = dict(parameters)
        self._patience = patience
        self._best = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        self.best_loss = math.inf
        self._since = 0

    @torch.no_grad()
    def observe(self, loss: float) -> None:
        """Records the held-out loss of the current adapter."""
        if loss < self.best_loss:
            self.best_loss, self._since = loss, 0
            for name, parameter in self._live.items():
                self._best[name].copy_(parameter)
        else:
            self._since += 1

    @property
    def reason(self) -> str | None:
        """Why the run should end now; None if it should not."""
        if self._since < self._patience:
            return None
        return f"the held-out loss has not fallen below {self.best_loss:.4f} in {self._since} evaluations"

    @torch.no_grad()
    def keep_best(self) -> None:
        """Restores the best adapter into the model, if any was scored."""
        if math.isfinite(self.best_loss):
            for name, parameter in self._live.items():
                parameter.copy_(self._best[name])

    def state_dict(self) -> dict[str, Any]:
        """Returns the best adapter by name, its loss (None before the first), and the evaluations since."""
        loss = self.best_loss if math.isfinite(self.best_loss) else None
        return {**self._best, "best_loss": loss, "since": self._since}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Loads a state that `state_dict` returned."""
        self.best_loss = math.inf if state["best_loss"] is None else float(state["best_loss"])
        self._since = int(state["since"])
        for name, value in self._best.items():
            value.copy_(state[name])
