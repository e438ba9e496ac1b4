"""Held-out loss over all ranks."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable

from engine.data.window_source import WindowSource
from engine.runs.process_group import ProcessGroup
from engine.steps.held_out_loss import HeldOutLoss, evaluate
from engine.steps.whole_step import Window


def evaluate_together(
    group: ProcessGroup,
    loss_of: Callable[[Window], float],
    windows: WindowSource,
    *,
    shared: bool,
    max_tokens: int,
    progress: Callable[[int, int], None],
    stopping: type[Exception],
) -> HeldOutLoss:
    """Runs `engine.steps.held_out_loss.evaluate` in every rank, with the same result in each.

    Args:
        group: The ranks.
        loss_of: Returns a window's summed loss.
        windows: The held-out windows.
        shared: Whether ranks divide the windows in turns; otherwise they compute each one together.
        max_tokens: As in `evaluate`.
        progress: As in `evaluate`; raises `stopping` to abandon the evaluation.
        stopping: Exception that is raised in all ranks if one rank raises it.
    """
    if group.size == 1:
        return evaluate(loss_of, windows, max_tokens=max_tokens, progress=progress)
    if not shared:
        return evaluate(loss_of, windows, max_tokens=max_tokens, progress=_in_step(group, progress, stopping))
    found = None
    with contextlib.suppress(stopping):
        found = evaluate(_in_turns(group, loss_of), windows, max_tokens=max_tokens, progress=progress)
    loss, stopped = group.total([found.loss if found else 0.0, float(found is None)])
    if stopped or found is None:
        raise stopping
    return dataclasses.replace(found, loss=loss)


def _in_turns(group: ProcessGroup, loss_of: Callable[[Window], float]) -> Callable[[Window], float]:
    """Returns a loss function that scores every `size`-th window, and gives 0.0 for those of other ranks.

    The sum over ranks is then the loss of all windows.
    """
    turns = itertools.count()
    return lambda window: loss_of(window) if next(turns) % group.size == group.rank else 0.0


def _in_step(
    group: ProcessGroup, progress: Callable[[int, int], None], stopping: type[Exception]
) -> Callable[[int, int], None]:
    """Lets rank 0 decide whether to continue, so that either all ranks or none compute the next window."""

    def report(done: int, total: int) -> None:
        def ask() -> bool:
            try:
                progress(done, total)
            except stopping:
                return True
            return False

        if group.agree(ask):
            raise stopping

    return report
