"""Builds a run's step in its planned layout, with fallbacks for OOM."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from engine.plan.optimizations import may_stream
from engine.plan.request import streaming_refusal
from engine.plan.step_layout import StepLayout
from engine.protocol.events import RecoveryTaken
from engine.steps.fallback_policy import FallbackPolicy
from engine.steps.oom_fallback import ClosableStep, FallbackStep

if TYPE_CHECKING:
    from engine.models.fine_tuning import FineTuning
    from engine.recipes.setup import Setup
    from engine.runs.context import TrainingSession
    from engine.steps.oom_consensus import FallbackRequest
    from engine.training.state import Progress


def fallback_step(
    session: TrainingSession,
    setup: Setup,
    tuning: FineTuning,
    progress: Progress,
    build: Callable[[StepLayout], ClosableStep],
    make: Callable[..., FallbackStep] = FallbackStep,
    came_to: FallbackRequest | None = None,
) -> FallbackStep:
    """Builds the step in the planned layout, or in the run's last layout if it is resumed.

    Args:
        session: Emits an event for each fallback; `recovery.enabled` allows them.
        setup: Provides the planner's layout and the inputs of the fallback policy.
        tuning: Trained weights.
        progress: Stores the layout, for the run to resume in.
        build: Builds the step of a layout.
        make: FallbackStep, or a variant for several ranks.
        came_to: The layout in which all ranks restart after an OOM on one of them.
    """
    config, placement = session.config, setup.placement
    policy = FallbackPolicy(
        context=setup.context,
        layers=setup.spec.layers,
        quantised=placement.precision == "nf4",
        on_gpu=placement.device.type == "cuda",
        streamable=streaming_refusal(setup.spec, setup.context) is None
        and config.training.step != "whole"
        and may_stream(config),
        way=config.training.step,
        fixed=config.stream.fixed(),
    )

    def notify(what: str, why: str) -> None:
        progress.layout = step.layout.as_json()
        progress.recoveries.append(f"{what}: {why}")
        session.emit(RecoveryTaken(what=what, why=why))

    # A plan depends on the current free memory and speed; a resumed run must keep its layout to round as before.
    if came_to is not None:
        progress.layout = came_to.layout
    planned = setup.choice.plan.layout
    layout = StepLayout.from_json(progress.layout, like=planned) if progress.layout else planned
    if not policy.allows(layout):
        layout = planned
    progress.layout = layout.as_json()
    step = make(
        tuning,
        layout,
        build=build,
        smaller=policy.smaller if config.recovery.enabled else lambda layout, place: None,  # noqa: ARG005
        notify=notify,
    )
    if came_to is not None:
        notify(f"re-planned the step: {came_to.what}", came_to.why)
    return step
