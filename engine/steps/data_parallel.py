"""Data parallel, where every rank computes the gradient of its own windows of an update, and ranks sum the gradients.

Each window's loss is scaled by 1 / (targets of the whole update), as in a single process. So the sum of the ranks'
gradients is the gradient of one big batch, even if the ranks' shares are unequal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from engine.distributed.gradient_sum import AllReduceSum, GradientSum
from engine.distributed.torch_process_group import TorchProcessGroup
from engine.errors import one_line
from engine.errors.distributed import RANK_FAILED
from engine.models.fine_tuning import FineTuning
from engine.plan.step_layout import StepLayout
from engine.randomness import draw_seed, keyed_numbers
from engine.steps.failures import Place
from engine.steps.oom_fallback import ClosableStep, FallbackStep
from engine.steps.whole_step import StepAbandonedError, StepMonitor, StepResult, Window, count_targets

_DONE, _ABANDONED, _FAILED = 0, 1, 2


def shares(windows: Sequence[Window], ranks: int) -> list[list[int]]:
    """Assigns windows to ranks, the longest first, each to the rank with least work; returns each rank's indices.

    A window's work is length × (length + 4,096), because linear layers grow with its length, attention with its square.
    """
    work = [len(window) * (len(window) + 4096) for window in windows]
    loads, taken = [0] * ranks, [[] for _ in range(ranks)]  # type: tuple[list[int], list[list[int]]]
    for index in sorted(range(len(windows)), key=lambda i: (-work[i], i)):
        rank = min(range(ranks), key=lambda r: (loads[r], r))
        loads[rank] += work[index]
        taken[rank].append(index)
    return [sorted(indices) for indices in taken]


class DataParallelStep(FallbackStep):
    """A FallbackStep over this rank's windows, which sums the gradients over ranks. Each rank finds its own layout.

    Args:
        tuning, layout, build, smaller, notify: As in FallbackStep.
        group: The ranks.
        add_up: Sums the gradients; None for an all-reduce.
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
        add_up: GradientSum | None = None,
    ) -> None:
        super().__init__(tuning, layout, build=build, smaller=smaller, notify=notify)
        self._group, self._add_up = group, add_up or AllReduceSum(group)

    def run(self, windows: Sequence[Window], scale: float, monitor: StepMonitor) -> StepResult:
        """See TrainingStep. The result and the gradients are summed over all ranks.

        Raises:
            StepAbandonedError: a rank was asked to stop.
            EliteError: RANK_FAILED, if another rank failed.
        """
        mine = [windows[index] for index in shares(windows, self._group.size)[self._group.rank]]
        # All ranks draw the same seed, so that their generators stay in sync; dropout differs from rank to rank.
        seed = draw_seed()
        state, loss_sum, failure = _DONE, 0.0, None
        try:
            with keyed_numbers(self._group.device, seed, "rank", self._group.rank):
                if mine:
                    loss_sum = super().run(mine, scale, monitor).loss_sum
        except StepAbandonedError:
            state = _ABANDONED
        except Exception as error:
            state, failure = _FAILED, error
        problem = "" if failure is None else one_line(failure)[:500]
        outcomes = self._group.gather((state, loss_sum, problem))
        if failure is not None:
            raise failure
        _raise_others(outcomes, self._group.size)
        self._add_up(gradients_of(self._tuning))
        return StepResult(summed=sum(loss for _, loss, _ in outcomes), tokens=count_targets(windows))


def _raise_others(outcomes: list[tuple[int, float, str]], ranks: int) -> None:
    for rank, (state, _, problem) in enumerate(outcomes):
        if state == _FAILED:
            raise RANK_FAILED(
                rank=rank,
                ranks=ranks,
                problem=problem,
                remedy="then continue with `engine train --resume`",
                log=f"ranks/rank-{rank}.log",
            )
    if any(state == _ABANDONED for state, _, _ in outcomes):
        raise StepAbandonedError


def gradients_of(tuning: FineTuning) -> list[Tensor]:
    """Lists the gradients of all trained weights, each of its weight's shape; zeros where this rank has none."""
    for parameter in tuning.weights.values():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return [parameter.grad for parameter in tuning.weights.values() if parameter.grad is not None]
