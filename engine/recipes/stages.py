"""Runs the stages of a schedule: their windows and updates, and the step layout of each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from engine.data.stages import StagedWindows, plan_stages
from engine.data.window_source import Update, WindowSource, plan_updates
from engine.plan.step_layout import StepLayout
from engine.protocol.events import PhaseChanged
from engine.steps.oom_fallback import FallbackStep

if TYPE_CHECKING:
    from engine.data.windows import Windows
    from engine.recipes.setup import Setup
    from engine.runs.context import TrainingSession
    from engine.steps.whole_step import TrainingStep
    from engine.training.state import Progress


def updates_of(setup: Setup, windows: Windows) -> tuple[WindowSource, list[Update]]:
    """Returns the windows that a run trains on, and all its updates.

    Args:
        setup: Decisions of the run.
        windows: Training windows of the longest context.
    """
    training = setup.training
    schedule = setup.choice.schedule
    if schedule is None:
        return windows, list(plan_updates(windows, training, setup.context))
    shorter = [windows.with_context(stage.context) for stage in schedule.stages[:-1]]
    staged = StagedWindows([*shorter, windows])
    updates = plan_stages(staged, [stage.updates for stage in schedule.stages], training)
    return staged, updates[: training.max_steps]


class StageSwitch:
    """Lets the step compute each stage in its planned layout, and announces the stages.

    Args:
        session: Receives an event for each stage.
        setup: Decisions of the run.
        step: The step, which changes its layout if it can.
        progress: Keeps stage and layout, so that a resumed run goes on in the layout that it had.
        updates: All updates of the run.
    """

    def __init__(
        self, session: TrainingSession, setup: Setup, step: TrainingStep, progress: Progress, updates: list[Update]
    ) -> None:
        self._session, self._progress, self._updates = session, progress, updates
        schedule = setup.choice.schedule
        self._stages = () if schedule is None else schedule.stages
        self._step = step if isinstance(step, FallbackStep) else None
        self._entered: int | None = None
        self._longest = setup.choice.plan.layout

    def enter(self, update: Update) -> None:
        """Changes to the stage of the next update, if that is another one."""
        stage = update.stage
        if not self._stages or stage == self._entered:
            return
        if self._progress.stage != stage or self._progress.layout is None:
            self._progress.stage = stage
            self._progress.layout = self._stages[stage].plan.layout.as_json()
        self._use(StepLayout.from_json(self._progress.layout, like=self._longest))
        self._entered = stage
        context = self._stages[stage].context
        left = sum(other.stage == stage for other in self._updates[self._progress.step :])
        detail = f"stage {stage + 1} of {len(self._stages)}: {left:,} updates on windows of {context:,} tokens"
        self._session.emit(PhaseChanged(phase="training", detail=detail))

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """Computes in the layout of the longest windows, which are those that held-out files are scored in."""
        if not self._stages or self._step is None:
            yield
            return
        before, kept = self._step.layout, self._progress.layout
        if self._progress.stage != len(self._stages) - 1:
            self._use(self._longest)
        try:
            yield
        finally:
            if self._progress.stage != len(self._stages) - 1:
                # What scoring had to fall back to says nothing of shorter windows.
                self._progress.layout = kept
                self._use(before)

    def _use(self, layout: StepLayout) -> None:
        if self._step is not None:
            self._step.use(layout)
