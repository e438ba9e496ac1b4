"""Estimates a run's remaining time: its steps, and the phases before and after them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from elite_tui.runs.eta import Estimate
from engine.protocol.events import PHASES

if TYPE_CHECKING:
    from elite_tui.runs.files import PlannedRun
    from elite_tui.runs.view import RunView


def total_steps(view: RunView, planned: PlannedRun | None) -> int | None:
    """Returns the steps of the whole run: until the first one, those that the data give, else those asked for."""
    if view.step is None and planned is not None and planned.steps is not None:
        return planned.steps
    return view.total_steps


def remaining(view: RunView, planned: PlannedRun | None, now: float | None) -> Estimate | None:
    """Estimates the rest of a run: its steps, and the phases before and after them that the plan promises.

    Args:
        view: The run.
        planned: Its plan.
        now: The training machine's clock; None ignores the time spent in the current step or phase.
    """
    total = total_steps(view, planned)
    if total is None:
        return None
    phases = planned.phases if planned is not None else {}
    step_seconds = planned.step_seconds if planned is not None else None
    steps_left, each = total - view.done_steps, view.eta.step_seconds or step_seconds
    place = PHASES.index(view.phase) if view.phase in PHASES else PHASES.index("training")
    # The plan names more than the journal: what the first step takes besides is no phase of a run.
    ahead = {*PHASES[place + 1 :], *(() if view.step is not None else phases.keys() - set(PHASES))}
    coming = sum(seconds for name, seconds in phases.items() if name in ahead)
    if view.phase == "training":
        # A measured pace comes with the engine's own estimate, which knows what follows the last step.
        found = view.eta.left(steps_left, now, step_seconds)
        left = None if found is None else found.seconds + (0.0 if view.eta.step_seconds else coming)
        basis = "" if found is None else found.basis
    elif each is None:
        return None
    else:
        left = coming + _phase_left(view, phases, now) + steps_left * each
        basis = "predicted by the plan"
    if left is None:
        return None
    if view.step is not None:
        # Steps of several stages differ: the latest ones say nothing about the time of all.
        whole = left + view.history.elapsed(now or view.updated_at or 0.0)
    else:
        whole = total * each + sum(phases.values()) if each is not None else 0.0
    return Estimate(left, basis, min(1.0, max(0.0, 1 - left / whole)) if whole > 0 else None)


def _phase_left(view: RunView, phases: Mapping[str, float], now: float | None) -> float:
    began = view.phase_began
    spent = now - began if now is not None and began is not None else 0.0
    return max(0.0, phases.get(view.phase, 0.0) - max(0.0, spent))
