"""Holds the tier table for the draft's settings, and the tier that a run of the draft would use.

Two optimisations change a whole plan; their effects are predicted by planning with and without each.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from engine.errors import EliteError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.config import RunConfig
    from engine.errors import EliteError
    from engine.hardware.machine import Machine
    from engine.models.spec import ModelSpec
    from engine.plan.choice import Choice
    from engine.plan.optimizations import OptimizationState
    from engine.plan.planner import TierTable
    from engine.plan.search import Budget


PLANNED = ("streamed_backprop", "qlora")
"Optimisations that match no single part of a plan, so that the registry leaves their effects open."


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


def with_planned_effects(
    states: Sequence[OptimizationState], config: RunConfig, machine: Machine, spec: ModelSpec, choice: Choice | None
) -> tuple[OptimizationState, ...]:
    """Adds the effects of PLANNED at the chosen context to the states.

    Of a context that does not fit, the leanest plan counts.
    """
    from engine.plan.choice import request_of_run
    from engine.plan.optimizations import toggle
    from engine.plan.planner import plan_context

    if choice is None:
        return tuple(states)
    found = []
    for state in states:
        if state.id in PLANNED and state.state != "unavailable":
            try:
                off, on = (
                    plan_context(request_of_run(toggle(config, state.id, on=on), machine, spec, None), choice.context)
                    for on in (False, True)
                )
            except EliteError:
                found.append(state)  # cannot be toggled here, so there is nothing to compare
                continue
            state = replace(  # noqa: PLW2901 - the same row, with its figures
                state,
                gpu_bytes=on.gpu_peak_bytes - off.gpu_peak_bytes,
                host_bytes=on.host_peak_bytes - off.host_peak_bytes,
                step_seconds=on.step_seconds - off.step_seconds,
            )
        found.append(state)
    return tuple(found)
