"""Compares what a plan promised with what the run took, for its report and for later plans of this machine."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.evaluation.projection import project
from engine.hardware.measured import correction_key
from engine.hardware.past_runs import PastRun
from engine.plan.whole_time import SCORING_PHASES
from engine.protocol import PhaseChanged, RunStarted, StepCompleted

if TYPE_CHECKING:
    from engine.evaluation.curve import RunCurve
    from engine.plan.choice import Choice
    from engine.plan.planner import TierPlan
    from engine.protocol import Envelope, RunFinished

FEWEST = 3
"""Updates of a layout from which their time says something."""


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """Measured times of a run's only attempt, from its journal."""

    seconds: float
    "From the first event to the last."
    phases: dict[str, float]
    "Seconds of each phase that has ended."
    steps: dict[int, float]
    "Seconds of each update, by its number."


def read_timeline(events: Iterable[Envelope]) -> Timeline | None:
    """Reads the times of a run; None for a resumed one, whose attempts do not add up to a promise."""
    first = last = began = None
    phase = "starting"
    phases: dict[str, float] = defaultdict(float)
    steps: dict[int, float] = {}
    starts = 0
    for envelope in events:
        event, last = envelope.event, envelope.time
        if first is None:
            first = began = envelope.time
        if isinstance(event, RunStarted):
            starts += 1
        elif isinstance(event, PhaseChanged):
            assert began is not None
            if event.phase != phase:
                phases[phase] += envelope.time - began
                phase, began = event.phase, envelope.time
        elif isinstance(event, StepCompleted):
            steps[event.step] = event.seconds
    if starts != 1 or first is None or last is None:
        return None
    return Timeline(seconds=last - first, phases=dict(phases), steps=steps)


@dataclass(frozen=True, kw_only=True)
class Kept:
    """One figure of the promise beside what happened."""

    name: str
    predicted: float
    measured: float


@dataclass(frozen=True, kw_only=True)
class Promise:
    """What a plan predicts for a run, in seconds."""

    seconds: float
    "The whole run."
    step_seconds: float
    "An update, on average."
    phases: dict[str, float]
    "Each phase besides the updates."

    @classmethod
    def of(cls, choice: Choice, stages: Sequence[int]) -> Promise:
        """Makes the promise of a plan for updates of these stages."""
        planned = [choice.step_seconds[stage] for stage in stages]
        return cls(
            seconds=choice.whole.around(sum(planned), len(planned)),
            step_seconds=sum(planned) / max(1, len(planned)),
            phases={part.name: part.seconds for part in choice.whole.phases},
        )

    @classmethod
    def from_json(cls, data: Mapping[str, Any] | None) -> Promise | None:
        """Reads what dataclasses.asdict made of a promise; None where it is none."""
        try:
            return None if data is None else cls(**data)
        except TypeError:
            return None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A promise beside what happened."""

    promise: Promise
    timeline: Timeline | None = None
    loss: float | None = None
    "Held-out loss that past runs of the model let expect; None where they are too few."

    @property
    def phases(self) -> Iterator[Kept]:
        """Yields the phases that were promised and measured."""
        if self.timeline is not None:
            for name, predicted in self.promise.phases.items():
                if name in self.timeline.phases:
                    yield Kept(name=name, predicted=predicted, measured=self.timeline.phases[name])


def compare(promise: Promise, events: Iterable[Envelope], curve: RunCurve, past: Sequence[float]) -> Comparison:
    """Compares a run with its promise.

    Args:
        promise: Of its plan.
        events: Its journal.
        curve: Its losses.
        past: See `engine.evaluation.curve.past_ratios`.
    """
    projection = project(curve.held_out[:1], curve.total_tokens, past) if curve.total_tokens else None
    return Comparison(
        promise=promise,
        timeline=read_timeline(events),
        loss=None if projection is None else projection.loss,
    )


def past_run(
    run: str, model: str, choice: Choice, stages: Sequence[int], timeline: Timeline, finished: RunFinished
) -> PastRun:
    """Makes the record of a completed run for later plans: measured over modelled, without earlier corrections."""
    took: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for number, stage in enumerate(stages, start=1):
        # The first update of a process takes longer, which is a phase of its own.
        if number > 1 and number in timeline.steps:
            plan = choice.plans[stage]
            took[_key(model, plan)].append((timeline.steps[number], _modelled(plan)))
    steps = {
        key: sum(seconds for seconds, _ in pairs) / sum(modelled for _, modelled in pairs)
        for key, pairs in took.items()
        if len(pairs) >= FEWEST
    }
    longest = choice.plans[-1]
    # Scoring is modelled as a share of a step, and steps have corrections of their own.
    pace = steps.get(_key(model, longest), statistics.median(steps.values()) if steps else _factor(longest))
    phases = {}
    for part in choice.whole.phases:
        modelled = part.seconds / part.factor
        if part.name in SCORING_PHASES:
            modelled *= pace / _factor(longest)
        if part.name in timeline.phases and modelled > 0:
            phases[part.name] = timeline.phases[part.name] / modelled
    host = finished.host_peak
    predicted = max(plan.host_peak_bytes for plan in choice.plans)
    return PastRun(
        run=run,
        model=model,
        steps=steps,
        phases=phases,
        host=host / predicted if host and predicted else None,
        gpu=finished.gpu_peak / choice.gpu_peak_bytes if finished.gpu_peak and choice.gpu_peak_bytes else None,
    )


def _key(model: str, plan: TierPlan) -> str:
    return correction_key(model, plan.layout.precision, streamed=plan.layout.stream is not None)


def _modelled(plan: TierPlan) -> float:
    """Returns the seconds of an update before any correction."""
    return plan.step_seconds / _factor(plan)


def _factor(plan: TierPlan) -> float:
    return math.prod(part.factor for part in plan.time)
