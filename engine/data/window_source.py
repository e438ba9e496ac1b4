"""Which windows make up which update: a pure function of the data, the seed and the settings.

Because it is pure, a checkpoint needs only the number of updates done to know where in the data to go on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from engine.data.windows import Window

if TYPE_CHECKING:
    from engine.config import TrainingSection

DEFAULT_TOKENS = 8192


class WindowSource(Protocol):
    """What the loop needs of engine.data.windows.Windows."""

    def __len__(self) -> int:
        """Number of windows."""

    def __getitem__(self, index: int) -> Window:
        """One window."""

    def epoch_order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """The windows in the order of one pass, another for each epoch."""


@dataclass(frozen=True, kw_only=True)
class Update:
    """The windows of one optimiser step."""

    windows: tuple[int, ...]
    "Positions in the WindowSource."
    epoch: float
    "Passes over the data when this update is done, 1.5 in the middle of the second."
    stage: int = 0
    "Position of its stage, in a run whose windows grow (engine.data.stages)."


def tokens_per_update(training: TrainingSection, context: int) -> int:
    """Tokens gathered for an update: what was asked for, else 8,192 or one window if that is larger."""
    return training.tokens_per_update or max(DEFAULT_TOKENS, context)


def plan_updates(windows: WindowSource, training: TrainingSection, context: int) -> Iterator[Update]:
    """Every update of the run in order.

    An update takes windows until another one, as long as its longest, would bring it further from `tokens_per_update`:
    windows that were cut at good places fall a little short, and one more for the sake of that would double a step.
    An update may reach into the next epoch, and the last one may be smaller. `epochs` counts in windows, so 0.5 stops
    in the middle of the first pass.
    """
    wanted = tokens_per_update(training, context)
    a_pass = len(windows.epoch_order(training.seed, 0))
    last = max(1, round(training.passes * a_pass))
    gathered: list[int] = []
    tokens = longest = 0
    made = 0
    for seen, index in enumerate(_endless_order(windows, training.seed), start=1):
        gathered.append(index)
        length = len(windows[index])
        tokens, longest = tokens + length, max(longest, length)
        if wanted - tokens < longest / 2 or seen == last:
            yield Update(windows=tuple(gathered), epoch=seen / a_pass)
            gathered, tokens, longest, made = [], 0, 0, made + 1
        if seen == last or made == training.max_steps:
            return


def _endless_order(windows: WindowSource, seed: int) -> Iterator[int]:
    epoch = 0
    while True:
        yield from (int(index) for index in windows.epoch_order(seed, epoch))
        epoch += 1


def count_updates(windows: WindowSource, training: TrainingSection, context: int) -> int:
    """How many updates `plan_updates` yields."""
    return sum(1 for _ in plan_updates(windows, training, context))
