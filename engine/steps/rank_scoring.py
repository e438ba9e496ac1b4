"""Held-out loss by all ranks together."""

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
    """`engine.steps.held_out_loss.evaluate` in every rank, with the same result in each.

    Args:
        team: The ranks.
        loss_of: A window's loss.
        windows: The held-out ones.
        shared: Whether ranks take windows in turns; else they compute each together.
        max_tokens: As in `evaluate`.
        progress: As in `evaluate`; raises `stopping` to abandon the evaluation.
        stopping: Raised in all ranks as soon as one has raised it.
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
    """The loss of every `size`-th window, and 0.0 for those that other ranks score: the ranks' sums add up to all."""
    turns = itertools.count()
    return lambda window: loss_of(window) if next(turns) % group.size == group.rank else 0.0


def _in_step(
    group: ProcessGroup, progress: Callable[[int, int], None], stopping: type[Exception]
) -> Callable[[int, int], None]:
    """Rank 0 decides for all whether to go on: the next window is computed by all or by none."""

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
