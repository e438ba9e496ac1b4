"""Holds the tier table for the draft's settings, and the tier that a run of the draft would use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.config import RunConfig
    from engine.errors import EliteError
    from engine.hardware.machine import Machine
    from engine.models.spec import ModelSpec
    from engine.plan.choice import Choice
    from engine.plan.optimizations import OptimizationState
    from engine.plan.planner import TierTable
    from engine.plan.search import Budget


@dataclass(frozen=True, kw_only=True)
class Plans:
    """Results of the planner."""

    config: RunConfig
    spec: ModelSpec
    machine: Machine
    "The machine as the run sees it: without its GPUs if the run uses the CPU."
    whole_machine: Machine
    "The machine with all its GPUs."
    usable: Budget
    "Bytes of each place that a plan may use, after other processes' use and the headroom."
    table: TierTable
    choice: Choice | None
    "The plan of a run of the draft; None if it does not fit."
    refusal: EliteError | None
    "Why it does not fit."
    states: tuple[OptimizationState, ...]
    "State of every optimisation, in the order of the registry."
