"""Averages of the weights over updates, exponential (EMA) or equal over the last updates (SWA, arXiv 1803.05407)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import Parameter, ParameterList
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class AdapterAverage:
    """Averages the trained weights; the average is scored and saved instead of the last weights.

    Args:
        parameters: The weights that the optimiser updates.
        decay: Decay of the exponential average; None weighs all updates equally.
        first_update: Updates before the first one that is averaged.
    """

    def __init__(self, parameters: Mapping[str, Parameter], *, decay: float | None, first_update: int = 0) -> None:
        self._names = list(parameters)
        self._live = ParameterList(parameters.values())
        average = None if decay is None else get_ema_multi_avg_fn(decay)
        self._average = AveragedModel(self._live, multi_avg_fn=average)
        self._first, self._made = first_update, 0

    def after_step(self) -> None:
        """Adds the weights after an update of the optimiser to the average."""
        self._made += 1
        if self._made > self._first:
            self._average.update_parameters(self._live)

    @property
    def count(self) -> int:
        """Number of averaged updates."""
        return int(self._average.n_averaged)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Swaps the average into the weights while the context is open; does nothing before the first average."""
        if not self.count:
            yield
            return
        kept = [live.detach().clone() for live in self._live]
        self.keep()
        try:
            yield
        finally:
            with torch.no_grad():
                for live, value in zip(self._live, kept, strict=True):
                    live.copy_(value)

    @torch.no_grad()
    def keep(self) -> None:
        """Replaces the weights by the average, if there is one."""
        if self.count:
            for live, average in zip(self._live, self._average.module.parameters(), strict=True):
                live.copy_(average)

    def state_dict(self) -> dict[str, Any]:
        """Returns the averages by name, the number of averaged updates, and the number of updates made."""
        averages = zip(self._names, self._average.module.parameters(), strict=True)
        return {**{name: value.detach() for name, value in averages}, "count": self.count, "made": self._made}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""
        self._made = int(state["made"])
        self._average.n_averaged.fill_(int(state["count"]))
        for name, value in zip(self._names, self._average.module.parameters(), strict=True):
            value.copy_(state[name])
