"""Compares the configuration of a resumed run with its first one, and tells which changes are allowed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engine import config as run_config
from engine.config import RunConfig
from engine.config.problems import SECRET_FIELDS

_FREE_SECTIONS = ("checkpoint", "recovery", "distributed", "evaluation", "notify", "stream")
_FREE_FIELDS = (
    "model.device",
    "training.epochs",
    "training.max_steps",
    "training.step",
    "training.cuda_graphs",
    "training.evaluate_every",
)
"""Fields that may change, because they do not affect the weights, the optimizer states or the windows. All others may
not, including those of later versions. A run with a seed, a rate or a rank that changed midway is not reproducible."""
_SCHEDULED_FIELDS = ("training.epochs", "training.hours")
"""Fields that a schedule was made from."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """One field that differs."""

    field: str
    before: Any
    after: Any

    planned: bool = False
    "Whether the run's schedule says it already."

    @property
    def allowed(self) -> bool:
        """Whether the run may resume with it."""
        if self.planned:
            return False
        return self.field.partition(".")[0] in _FREE_SECTIONS or self.field in _FREE_FIELDS

    def __str__(self) -> str:
        why = " (its schedule was made for them)" if self.planned else ""
        if self.field in SECRET_FIELDS:
            return f"{self.field}{why}"
        return f"{self.field} {_shown(self.before)} → {_shown(self.after)}{why}"


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "(none)"
    return "(unset)" if value is None else str(value)


def changes(before: RunConfig, after: RunConfig, *, scheduled: bool) -> list[Change]:
    """Lists the fields that differ, in order of declaration.

    Args:
        before: Configuration of the run.
        after: The same with the changes asked for.
        scheduled: Whether the run follows a schedule, which fixes the passes over the files.
    """
    old, new = run_config.to_mapping(before), run_config.to_mapping(after)
    return [
        Change(
            field=f"{section}.{name}",
            before=value,
            after=new[section][name],
            planned=scheduled and f"{section}.{name}" in _SCHEDULED_FIELDS,
        )
        for section, values in old.items()
        for name, value in values.items()
        if new[section][name] != value
    ]
