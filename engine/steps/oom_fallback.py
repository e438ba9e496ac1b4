"""A TrainingStep that on OOM frees its buffers, falls back one layout, and retries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from engine.errors import EliteError
from engine.errors.planning import LAYOUT_UNAVAILABLE, StreamPlanError
from engine.errors.training import OUT_OF_MEMORY
from engine.models.adapter import trainable
from engine.models.fine_tuning import FineTuning
from engine.plan.step_layout import StepLayout, difference
from engine.randomness import capture_random, restore_random
from engine.steps.failures import Place, memory_place, release_memory
from engine.steps.whole_step import ScoringStep, StepMonitor, StepResult, TokenScores, TrainingStep, Window

T = TypeVar("T")


class ClosableStep(TrainingStep, ScoringStep, Protocol):
    """A step implementation that can restore the model."""

    def close(self) -> None:
        """Frees all buffers and restores the model."""


class FallbackStep:
    """A TrainingStep that falls back to smaller layouts until one fits.

    After an attempt that ran out of memory it drops the gradients, frees the buffers and restores the generators, so
    that the retry computes the same step.

    Args:
        tuning: Owns the model and the trained weights.
        layout: The first layout.
        build: Makes the step implementation of a layout.
        smaller: Returns the next smaller layout for a full place; None for none.
        notify: Called with each change of layout and its reason.
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
        """See TrainingStep. The trained weights' gradients must be cleared before, because a retry drops them.

        Raises:
            EliteError: OUT_OF_MEMORY, if no smaller layout is left; LAYOUT_UNAVAILABLE, if a layout is refused.
        """
        return self._until_it_fits(lambda way: way.run(windows, scale, monitor), trains=True)

    def loss(self, window: Window) -> float:
        """See TrainingStep."""
        return self._until_it_fits(lambda way: way.loss(window), trains=False)

    def token_scores(self, window: Window) -> TokenScores:
        """See ScoringStep."""
        return self._until_it_fits(lambda way: way.token_scores(window), trains=False)

    def close(self) -> None:
        """Frees all buffers and restores the model; the next step allocates the buffers again."""
        if self._way is not None:
            self._way.close()
            self._way = None

    def use(self, layout: StepLayout) -> None:
        """Computes in another layout from now on; the gradient stays the same."""
        if layout != self.layout:
            self.close()
            release_memory()
            self.layout = layout

    def can_shrink(self, place: Place) -> bool:
        """Whether a layout that needs less memory of a place is left."""
        return self._smaller(self.layout, place) is not None

    def shrink(self, place: Place, why: str) -> bool:
        """Falls back one layout before an OOM; returns False if no smaller layout is left."""
        layout = self._smaller(self.layout, place)
        if layout is None:
            return False
        self._change(layout, why)
        return True

    def _until_it_fits(self, attempt: Callable[[ClosableStep], T], *, trains: bool) -> T:
        generators = capture_random()
        failed: set[tuple[str, Place]] = set()
        while True:
            error: Exception | None = None
            try:
                return attempt(self._ready(trains=trains))
            except StreamPlanError as refused:
                raise LAYOUT_UNAVAILABLE(problem=refused) from refused
            except Exception as caught:
                place = memory_place(caught)
                if place is None:
                    raise
                layout = self._smaller(self.layout, place)
                # A full RAM moves data to the disk, a full disk back to RAM: twice the same is a circle.
                attempted = repr(self.layout), place
                if layout is None or attempted in failed:
                    raise _out_of_ways(caught, place) from caught
                failed.add(attempted)
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
        """Returns the present step implementation.

        One that was built while the adapter was off does not know the trained weights, and is built again.
        """
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
    """Returns the final error, when no smaller layout is left."""
    if isinstance(error, EliteError):
        return error
    return OUT_OF_MEMORY(
        place=place,
        phase="a step",
        largest="a window in the smallest layout",
        remedy="use --set model.precision=nf4, a smaller model, or a lower training.tier",
    )
