"""Windows of several lengths over one run: which windows make up which update of which stage.

A pure function of data, seed and settings, as for windows of one length (engine.data.window_source), so that a
checkpoint needs only the number of updates done.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engine.data.mixture import Turns
from engine.data.window_source import Update, tokens_per_update
from engine.data.windows import epoch_order

if TYPE_CHECKING:
    import numpy.typing as npt

    from engine.config import TrainingSection
    from engine.data.windows import Window, Windows

_MOSTLY = 0.5
"""Share of a window's tokens from which an epoch counts as having had it."""


class StagedWindows:
    """The windows of all stages as one WindowSource, stage by stage."""

    def __init__(self, stages: Sequence[Windows]) -> None:
        """Takes windows of rising context over the same tokens."""
        self.stages = tuple(stages)
        self._ends = np.cumsum([len(stage) for stage in stages]).tolist()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Window:
        """One window."""
        stage = bisect.bisect_right(self._ends, index)
        return self.stages[stage][index - self.first(stage)]

    def first(self, stage: int) -> int:
        """Position of a stage's first window."""
        return int(self._ends[stage - 1]) if stage else 0

    def epoch_order(self, seed: int, epoch: int) -> npt.NDArray[np.int64]:
        """The last stage's order of one pass."""
        return self.stages[-1].epoch_order(seed, epoch) + self.first(len(self.stages) - 1)


def plan_stages(windows: StagedWindows, updates: Sequence[int], training: TrainingSection) -> list[Update]:
    """Plans every update of a run in stages, in order.

    Within an epoch no token is trained on twice, but for those at the edges of windows that overlap by less than half.
    This is planned from the end: the last stage takes long windows first, and earlier stages find enough short windows
    among what is left. An epoch is therefore full at the end of the run, and the first one may be a part.

    Args:
        windows: Of each stage.
        updates: How many each stage makes.
        training: Its seed and its tokens an update.
    """
    reversed_updates: list[tuple[int, list[int], int]] = []
    unseen = _Unseen(windows.stages, training.seed)
    for stage in reversed(range(len(windows.stages))):
        source, first = windows.stages[stage], windows.first(stage)
        # An update takes no window twice, even where the repository is smaller than it.
        wanted = min(tokens_per_update(training, source.context), source.token_count)
        order = unseen.windows(stage)
        for _ in range(updates[stage]):
            gathered: list[int] = []
            tokens = longest = 0
            while not gathered or wanted - tokens >= longest / 2:
                index = next(order)
                gathered.append(first + index)
                length = source.length(index)
                tokens, longest = tokens + length, max(longest, length)
            reversed_updates.append((stage, gathered, tokens))
    found, done = [], 0
    for stage, gathered, tokens in reversed(reversed_updates):
        done += tokens
        epoch = done / windows.stages[stage].token_count
        found.append(Update(windows=tuple(reversed(gathered)), epoch=epoch, stage=stage))
    return found


@dataclass
class _Unseen:
    """Windows in random order, those that an epoch has had left out."""

    stages: Sequence[Windows]
    seed: int

    def __post_init__(self) -> None:
        shares = self.stages[0].shares or (1.0,)
        self._turns, self._epochs = Turns(shares), [0] * len(shares)
        self._seen = np.zeros(self.stages[0].stream_tokens, dtype=np.bool_)

    def windows(self, stage: int) -> Iterator[int]:
        """Yields a stage's windows without end, of each source by its share."""
        source = self.stages[stage]
        of_each = {number: self._of_source(stage, number) for number, own in enumerate(source.by_source) if len(own)}
        while True:
            number = self._turns.next(list(of_each))
            index = next(of_each[number])
            self._turns.took(number, source.length(index))
            yield index

    def _of_source(self, stage: int, number: int) -> Iterator[int]:
        """Yields the windows of one source without end, epoch after epoch over it."""
        source, own = self.stages[stage], self.stages[stage].by_source[number]
        while True:
            for index in own[epoch_order(len(own), self.seed, self._epochs[number])]:
                spans = list(source.spans(int(index)))
                had = sum(int(self._seen[start:stop].sum()) for start, stop in spans)
                if had < _MOSTLY * source.length(int(index)):
                    for start, stop in spans:
                        self._seen[start:stop] = True
                    yield int(index)
            self._epochs[number] += 1
            if source.shares is None:
                self._seen[:] = False
                continue
            for index in own:
                for start, stop in source.spans(int(index)):
                    self._seen[start:stop] = False
