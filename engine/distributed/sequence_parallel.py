"""Sequence parallel in a run: every rank goes through the same windows, with its share of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from engine.distributed.data_parallel import WholeSum, gradients_of
from engine.distributed.process_team import ProcessTeam
from engine.models.fine_tuning import FineTuning
from engine.training.failures import Place
from engine.training.layout import Layout
from engine.training.replanning import ClosableStep, ReplanningStep
from engine.training.step import StepMonitor, StepResult, Window


class SequenceParallelStep(ReplanningStep):
    """A ReplanningStep over SequenceSteps. It does not re-plan: the layout is one for all ranks.

    Args:
        team: The ranks.
    """

    def __init__(
        self,
        tuning: FineTuning,
        layout: Layout,
        *,
        build: Callable[[Layout], ClosableStep],
        smaller: Callable[[Layout, Place], Layout | None],  # noqa: ARG002 - see above
        tell: Callable[[str, str], None],
        team: ProcessTeam,
    ) -> None:
        super().__init__(tuning, layout, build=build, smaller=lambda *_: None, tell=tell)
        self._add_up = WholeSum(team)

    def run(self, windows: Sequence[Window], scale: float, monitor: StepMonitor) -> StepResult:
        """See TrainingStep; the result is that of all ranks."""
        result = super().run(windows, scale, monitor)
        self._add_up(gradients_of(self._tuning))
        return result
