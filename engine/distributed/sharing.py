"""Which kind of step a run takes, by its team and strategy."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from engine.distributed.data_parallel import DataParallelStep
from engine.distributed.process_team import ProcessTeam
from engine.training.replanning import ReplanningStep

if TYPE_CHECKING:
    from engine.runtime.session import TrainingSession


def shared_step(session: TrainingSession) -> Callable[..., ReplanningStep]:
    """What makes the step: alone, or one that works with the other ranks."""
    team = session.team
    if not isinstance(team, ProcessTeam):
        return ReplanningStep
    return functools.partial(DataParallelStep, team=team)
