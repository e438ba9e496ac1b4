"""Compares what a plan promised with what the run took, for its report and for later plans of this machine."""

from __future__ import annotations

import bisect
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.evaluation.projection import project
from engine.hardware.measured import correction_key
from engine.hardware.past_runs import PastRun
from engine.plan.whole_time import CHECKPOINTS, FIRST_STEP, SCORING, SCORING_PHASES
from engine.protocol.events import PHASES, CheckpointSaved, EvalCompleted, PhaseChanged, RunStarted, StepCompleted

if TYPE_CHECKING:
    from engine.evaluation.curve import RunCurve
    from engine.plan.choice import Choice
    from engine.plan.planner import TierPlan
    from engine.protocol.events import RunFinished
    from engine.protocol.wire import Envelope

UPDATES = "updates"
"Name of all updates of a run, among the parts of its promise."
_Span = tuple[float, float]
"Start and end, in seconds since the epoch."
_ORDER = tuple(
    part for phase in PHASES for part in ((UPDATES, SCORING, CHECKPOINTS) if phase == "training" else (phase,))
)
FEWEST = 3
"""Updates of a layout from which their time says something."""
SET_BACK = 1.0
"""Seconds from which a journal's time that goes back spoils the comparison; a time server's corrections are less."""


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """Measured times of a run's only attempt, from its journal."""

    seconds: float
    "From the first event to the last."
    phases: dict[str, float]
    "Seconds of each phase that has ended."
    steps: dict[int, float]
    "Seconds of each update, by its number."
    updates: float = 0.0
    "Seconds of all updates."
    scores: tuple[float, ...] = ()
    "Seconds of each scoring between updates."
    checkpoints: tuple[float, ...] = ()
    "Seconds that each checkpoint took outside phases, updates and scorings: it is written while they run."


def read_timeline(events: Iterable[Envelope], until: float | None = None) -> Timeline | None:
    """Reads the times of a run; those of its parts do not overlap.

    None for a resumed one, whose attempts do not add up to a promise, and where the clock was set back meanwhile.

    Args:
        events: Its journal.
        until: Time at which its last phase ends, in seconds since the epoch; None for that of its last event.
    """
    spans: dict[str, list[_Span]] = defaultdict(list)
    first = last = began = None
    phase = "starting"
    phases: dict[str, float] = defaultdict(float)
    steps: dict[int, float] = {}
    starts = 0
    for envelope in events:
        if last is not None and envelope.time < last - SET_BACK:
            return None
        event, last = envelope.event, envelope.time
        if first is None:
            first = began = envelope.time
        if isinstance(event, RunStarted):
            starts += 1
        elif isinstance(event, PhaseChanged):
            assert began is not None
            if event.phase != phase:
                phases[phase] += envelope.time - began
                spans[phase].append((began, envelope.time))
                phase, began = event.phase, envelope.time
        elif isinstance(event, StepCompleted):
            steps[event.step] = event.seconds
            spans[UPDATES].append((envelope.time - event.seconds, envelope.time))
        elif isinstance(event, EvalCompleted) and phase == "training":
            spans[SCORING].append((envelope.time - event.seconds, envelope.time))
        elif isinstance(event, CheckpointSaved):
            spans[CHECKPOINTS].append((envelope.time - event.seconds, envelope.time))
    if starts != 1 or first is None or last is None or began is None:
        return None
    if until is not None and phase != "finished":
        last = max(last, until)
        phases[phase] += last - began
        spans[phase].append((began, last))
    spans.pop("training", None)  # what is left of it are the updates and what happens between them
    free = [(first, last)]
    own: dict[str, list[float]] = {}
    between = (UPDATES, SCORING, CHECKPOINTS)
    for name in (*(name for name in spans if name not in between), *between):
        own[name] = [_claim(free, span) for span in spans.get(name, ())]
    return Timeline(
        seconds=last - first,
        phases=dict(phases),
        steps=steps,
        updates=sum(own[UPDATES]),
        scores=tuple(own[SCORING]),
        checkpoints=tuple(own[CHECKPOINTS]),
    )


def _claim(free: list[_Span], span: _Span) -> float:
    """Takes the span out of the time that is free, and returns the seconds of it that were."""
    start, end = span
    # Free times are in order; a run of a million updates has as many.
    first = max(bisect.bisect_left(free, (start,)) - 1, 0)
    claimed = 0.0
    left: list[_Span] = []
    number = first
    while number < len(free) and free[number][0] < end:
        low, high = free[number]
        number += 1
        inside = max(low, start), min(high, end)
        if inside[0] >= inside[1]:
            left.append((low, high))
            continue
        claimed += inside[1] - inside[0]
        left += [(a, b) for a, b in ((low, inside[0]), (inside[1], high)) if a < b]
    free[first:number] = left
    return claimed


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
    updates: float | None = None
    "All updates, with what the first one takes more; None in plans of earlier versions, as the two below."
    scoring: float | None = None
    "All scorings between updates."
    checkpoints: float | None = None
    "All checkpoints."

    @classmethod
    def of(cls, choice: Choice, stages: Sequence[int]) -> Promise:
        """Makes the promise of a plan for updates of these stages."""
        planned = [choice.step_seconds[stage] for stage in stages]
        phases = {part.name: part.seconds for part in choice.whole.phases}
        return cls(
            seconds=choice.whole.around(sum(planned), len(planned)),
            step_seconds=sum(planned) / max(1, len(planned)),
            phases=phases,
            updates=sum(planned) + phases.get(FIRST_STEP, 0.0),
            scoring=choice.whole.scoring(len(planned)),
            checkpoints=choice.whole.checkpoints(sum(planned), len(planned)),
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
    def parts(self) -> Iterator[Kept]:
        """Yields the parts of the run that were promised and measured, in the order of a run."""
        timeline = self.timeline
        if timeline is None:
            return
        promised: dict[str, float | None] = {
            **self.promise.phases,
            UPDATES: self.promise.updates,
            SCORING: self.promise.scoring,
            CHECKPOINTS: self.promise.checkpoints,
        }
        measured = dict(timeline.phases)
        for name, taken in (
            (UPDATES, [timeline.updates] if timeline.steps else []),
            (SCORING, timeline.scores),
            (CHECKPOINTS, timeline.checkpoints),
        ):
            if taken:
                measured[name] = sum(taken)
        for name in _ORDER:
            predicted = promised.get(name)
            if predicted is not None and name in measured:
                yield Kept(name=name, predicted=predicted, measured=measured[name])


def compare(
    promise: Promise,
    events: Iterable[Envelope],
    curve: RunCurve,
    past: Sequence[float],
    until: float | None = None,
) -> Comparison:
    """Compares a run with its promise.

    Args:
        promise: Of its plan.
        events: Its journal.
        curve: Its losses.
        past: See `engine.evaluation.curve.past_ratios`.
        until: See `read_timeline`.
    """
    projection = project(curve.held_out[:1], curve.total_tokens, past) if curve.total_tokens else None
    return Comparison(
        promise=promise,
        timeline=read_timeline(events, until),
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
    whole = choice.whole
    a_score = whole.score / whole.score_factor * pace / _factor(longest)
    for name, taken, modelled in (
        (SCORING, timeline.scores, a_score),
        (CHECKPOINTS, timeline.checkpoints, whole.checkpoint / whole.checkpoint_factor),
    ):
        if taken and modelled > 0:
            phases[name] = statistics.mean(taken) / modelled
    promised = next((part for part in whole.phases if part.name == FIRST_STEP), None)
    if promised is not None and 1 in timeline.steps:
        plan = choice.plans[stages[0]]
        usual = _modelled(plan) * steps.get(_key(model, plan), _factor(plan))
        phases[FIRST_STEP] = max(0.0, timeline.steps[1] - usual) * promised.factor / promised.seconds
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
