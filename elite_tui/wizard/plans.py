"""Plans: the tier table for the draft's choices, with what a run of the draft as it stands would use."""

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
    """What the planner says."""

    config: RunConfig
    spec: ModelSpec
    machine: Machine
    "As the run sees it: without its GPUs where the run is to use the CPU."
    whole_machine: Machine
    "As it is."
    usable: Budget
    "Bytes of each place that a plan may use: what others hold and the headroom are taken off."
    table: TierTable
    choice: Choice | None
    "What a run would use now; None where that does not fit."
    refusal: EliteError | None
    "Why it does not."
    states: tuple[OptimizationState, ...]
    "What becomes of every optimisation, in the order of the registry."
