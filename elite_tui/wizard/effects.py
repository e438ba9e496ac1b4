"""Predicts the effects of two optimisations that change a whole plan, by planning with and without each."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from engine.errors import EliteError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.config import RunConfig
    from engine.hardware.machine import Machine
    from engine.models.spec import ModelSpec
    from engine.plan.choice import Choice
    from engine.plan.optimizations import OptimizationState

PLANNED = ("streamed_backprop", "qlora")
"Optimisations that match no single part of a plan, so that the registry leaves their effects open."


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
