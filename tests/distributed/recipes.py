"""What ranks run in tests instead of the training recipe: the same, on a machine that is too small."""

from __future__ import annotations

import functools
import time

from engine.errors.model import DEVICE_UNAVAILABLE
from engine.recipes.fine_tune import train
from engine.runs.context import TrainingSession
from engine.streaming.workspace import Workspace
from engine.training import loop

LARGEST_TILE = 128


def too_small(session: TrainingSession) -> None:
    """Rank 1 has no memory for tiles larger than LARGEST_TILE."""
    if session.group.rank == 1:
        _limit()
    train(session)


def smaller_from_the_second_step_on(session: TrainingSession) -> None:
    """The same, but only once an update has been made."""
    take = loop.take_optimizer_step

    @functools.wraps(take)
    def limited(parts, progress, *rest):  # type: ignore[no-untyped-def]
        if session.group.rank == 1 and progress.step == 1:
            _limit()
        return take(parts, progress, *rest)

    loop.take_optimizer_step = limited
    train(session)


def _limit() -> None:
    prepare = Workspace.prepare

    @functools.wraps(prepare)
    def limited(self: Workspace, context: int) -> None:
        if self._plan.tile > LARGEST_TILE:
            raise MemoryError
        prepare(self, context)

    Workspace.prepare = limited  # type: ignore[method-assign]


def refused_by_the_first(session: TrainingSession) -> None:
    """Rank 0 fails in its own words, while rank 1 computes on."""
    if session.group.rank == 0:
        raise DEVICE_UNAVAILABLE(device="cuda", problem="as this test wants it")
    time.sleep(300)
