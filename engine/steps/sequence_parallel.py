"""Sequence parallel, where every rank computes its shard of the same windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from engine.distributed.gradient_sum import AllReduceSum
from engine.distributed.torch_process_group import TorchProcessGroup
from engine.errors import one_line
from engine.models.fine_tuning import FineTuning
from engine.plan.step_layout import StepLayout, difference
from engine.steps.data_parallel import gradients_of
from engine.steps.failures import Place, memory_place
from engine.steps.oom_fallback import ClosableStep, FallbackStep, T
from engine.steps.whole_step import StepMonitor, StepResult, Window


class SequenceParallelStep(FallbackStep):
    """A FallbackStep over steps that share a sequence; it does not re-plan, because all ranks share one layout.

    Args:
        tuning, layout, build, smaller, notify: As in FallbackStep.
        group: The ranks.
        ask: Called on OOM, before the step fails, with a smaller layout for a restart of all ranks, its changes and
            the reason.
    """

    def __init__(
        self,
        tuning: FineTuning,
        layout: StepLayout,
        *,
        build: Callable[[StepLayout], ClosableStep],
        smaller: Callable[[StepLayout, Place], StepLayout | None],
        notify: Callable[[str, str], None],
        group: TorchProcessGroup,
        ask: Callable[[dict[str, Any], str, str], None],
    ) -> None:
        super().__init__(tuning, layout, build=build, smaller=lambda *_: None, notify=notify)
        self._add_up, self._for_all, self._ask = AllReduceSum(group), smaller, ask

    def run(self, windows: Sequence[Window], scale: float, monitor: StepMonitor) -> StepResult:
        """See TrainingStep. The result and the gradients are summed over all ranks."""
        result = super().run(windows, scale, monitor)
        self._add_up(gradients_of(self._tuning))
        return result

    def _until_it_fits(self, attempt: Callable[[ClosableStep], T], *, trains: bool) -> T:
        try:
            return super()._until_it_fits(attempt, trains=trains)
        except Exception as error:
            place = memory_place(error)
            layout = None if place is None else self._for_all(self.layout, place)
            if layout is not None:
                self._ask(layout.as_json(), difference(self.layout, layout), one_line(error))
            raise
