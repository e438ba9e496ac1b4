"""Averages of the adapter over its updates: exponential (EMA), or equal over the last ones (SWA, arXiv 1803.05407)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import Parameter, ParameterList
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class AdapterAverage:
    """The average, which is scored and kept instead of the last weights.

    Args:
        parameters: The weights that the optimiser changes.
        decay: Of the exponential average; None weighs all equally.
        first_update: Updates made before the first one that counts.
    """

    def __init__(self, parameters: Mapping[str, Parameter], *, decay: float | None, first_update: int = 0) -> None:
        self._names = list(parameters)
        self._live = ParameterList(parameters.values())
        average = None if decay is None else get_ema_multi_avg_fn(decay)
        self._average = AveragedModel(self._live, multi_avg_fn=average)
        self._first, self._made = first_update, 0

    def after_step(self) -> None:
        """The optimiser has made an update."""
        self._made += 1
        if self._made > self._first:
            self._average.update_parameters(self._live)

    @property
    def count(self) -> int:
        """Updates averaged over."""
        return int(self._average.n_averaged)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The adapter holds the average inside; what it holds outside, once there is one."""
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
        """Leaves the average in the adapter."""
        if self.count:
            for live, average in zip(self._live, self._average.module.parameters(), strict=True):
                live.copy_(average)

    def state_dict(self) -> dict[str, Any]:
        """Averages by name, how many updates they are over, and the updates made."""
        averages = zip(self._names, self._average.module.parameters(), strict=True)
        return {**{name: value.detach() for name, value in averages}, "count": self.count, "made": self._made}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes on what `state_dict` gave."""
        self._made = int(state["made"])
        self._average.n_averaged.fill_(int(state["count"]))
        for name, value in zip(self._names, self._average.module.parameters(), strict=True):
            value.copy_(state[name])
