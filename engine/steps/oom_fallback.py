"""A way to compute a step that gives way when memory runs out: it frees, re-plans one notch down, and repeats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from engine import errors
from engine.errors import EliteError, StreamPlanError
from engine.models.adapter import trainable
from engine.models.fine_tuning import FineTuning
from engine.plan.step_layout import StepLayout, difference
from engine.randomness import capture_random, restore_random
from engine.steps.failures import Place, memory_place, release_memory
from engine.steps.whole_step import ScoringStep, StepMonitor, StepResult, TrainingStep, Window

T = TypeVar("T")


class ClosableStep(TrainingStep, ScoringStep, Protocol):
    """A way to compute a step that can give the model back."""

    def close(self) -> None:
        """Frees all buffers and leaves the model as it was found."""


class FallbackStep:
    """A TrainingStep over whichever layout fits.

    An attempt that ran out of memory leaves nothing behind: its gradients are dropped, its buffers freed, and the
    generators put back, so that the repeated step is the one that was asked for.

    Args:
        tuning: What is trained.
        layout: The layout to begin with.
        build: Makes the way to compute a step in a layout.
        smaller: The next layout down for a full place; None for none.
        tell: Told what was done and why.
    """

    def __init__(
        self,
        tuning: FineTuning,
        layout: StepLayout,
        *,
        build: Callable[[StepLayout], ClosableStep],
        smaller: Callable[[StepLayout, Place], StepLayout | None],
        notify: Callable[[str, str], None],
    ) -> None:
        self.layout, self.first_layout = layout, layout
        self._tuning, self._build, self._smaller, self._notify = tuning, build, smaller, notify
        self._way: ClosableStep | None = build(layout)
        self._trains = True

    def run(self, windows: Sequence[Window], scale: float, monitor: StepMonitor) -> StepResult:
        """See TrainingStep. The trained weights' gradients are cleared before."""
        return self._until_it_fits(lambda way: way.run(windows, scale, monitor), trains=True)

    def loss(self, window: Window) -> float:
        """See TrainingStep."""
        return self._until_it_fits(lambda way: way.loss(window), trains=False)

    def token_losses(self, window: Window) -> npt.NDArray[np.float32]:
        """See ScoringStep."""
        return self._until_it_fits(lambda way: way.token_losses(window), trains=False)

    def close(self) -> None:
        """Frees all buffers and leaves the model as it was found; the next step makes them anew."""
        if self._way is not None:
            self._way.close()
            self._way = None

    def can_shrink(self, place: Place) -> bool:
        """Whether a layout is left that needs less of a place."""
        return self._smaller(self.layout, place) is not None

    def shrink(self, place: Place, why: str) -> bool:
        """Re-plans one notch down before anything fails; False if there is nothing smaller."""
        layout = self._smaller(self.layout, place)
        if layout is None:
            return False
        self._change(layout, why)
        return True

    def _until_it_fits(self, attempt: Callable[[ClosableStep], T], *, trains: bool) -> T:
        generators = capture_random()
        while True:
            error: Exception | None = None
            try:
                return attempt(self._ready(trains=trains))
            except StreamPlanError as refused:
                raise errors.LAYOUT_UNAVAILABLE(problem=refused) from refused
            except Exception as caught:
                place = memory_place(caught)
                if place is None:
                    raise
                layout = self._smaller(self.layout, place)
                if layout is None:
                    raise _out_of_ways(caught, place) from caught
                error = caught
            why = str(error.message if isinstance(error, EliteError) else f"out of {place} memory: {_first(error)}")
            # The frames that the error refers to hold the attempt's tensors.
            error.__traceback__ = error.__cause__ = error.__context__ = None
            del error
            if trains:
                for parameter in self._tuning.weights.values():
                    parameter.grad = None
            self._change(layout, why)
            restore_random(generators)

    def _ready(self, *, trains: bool) -> ClosableStep:
        """The present way; one made while the adapter was off does not know what it trains, and is made again."""
        if trains and not self._trains:
            self.close()
        if self._way is None:
            self._trains = bool(trainable(self._tuning.model))
            self._way = self._build(self.layout)
        return self._way

    def _change(self, layout: StepLayout, why: str) -> None:
        self.close()
        release_memory()
        before, self.layout = self.layout, layout
        self._notify(f"re-planned the step: {difference(before, layout)}", why)


def _first(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _out_of_ways(error: Exception, place: Place) -> Exception:
    """The error with which it ends: nothing smaller is left to try."""
    if isinstance(error, EliteError):
        return error
    return errors.OUT_OF_MEMORY(
        place=place,
        phase="a step",
        largest="a window in the smallest layout",
        remedy="use --set model.precision=nf4, a smaller model, or a lower training.tier",
    )
