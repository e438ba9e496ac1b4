"""Time of a run outside its updates: start, reading, loading, scoring, evaluation, checkpoints and saving.

A promise of a run's duration contains all of it. The constants are rough, for they differ from machine to machine and
are small beside hours; `engine.hardware.past_runs` corrects each phase by what earlier runs on this machine took.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.plan.planner import TierPlan, plan_context
from engine.plan.request import PlanRequest, workload_of
from engine.plan.speeds import Speeds, speeds_of
from engine.plan.time import TimePart
from engine.plan.workload import Workload

SCORING_PHASES = ("baseline", "evaluation")
"Phases whose time is modelled as a share of a step's."
SCORING, CHECKPOINTS = "scoring", "checkpoints"
"Parts of the training phase besides updates, by their names in promises and past runs."
FIRST_STEP = "first step"
"Name of what the first update takes more."
START_SECONDS = 12.0
"Start of the process, its imports and the CUDA context; 8 to 20 s seen."
FIRST_STEP_SECONDS = 5.0
"What the first update takes more, on a GPU: pinned memory is allocated and kernels are planned."
TOKENS_A_SECOND = 100_000.0
"Tokens of a repository that are read, checked and tokenised a second."
FORWARD_SHARE = 0.3
"Share of a step that scoring takes: the forward pass without recompute and backward, of 3.5 to 4.5 units."
CHECKPOINT_BYTES = 12
"Bytes of a trained parameter in a checkpoint: its value and AdamW's two states in fp32."
CHECKPOINT_SECONDS = 0.3
"Seconds of a checkpoint besides its bytes."
SAVING_SECONDS = 3.0
"Result, report and charts, besides the bytes."
GENERATION_CALLS = 100
"Launches of a layer for the next token of a batch."
LINE_TOKENS = 16
"Tokens of a completed line, about."
GENERATED_TOGETHER = 16
"Functions that are completed in one batch (engine.generation.batched)."


@dataclass(frozen=True, kw_only=True)
class WholeTime:
    """Seconds of a run besides its updates."""

    phases: tuple[TimePart, ...]
    "Once a run, by the phases' names (engine.protocol.events.PHASES)."
    checkpoint: float
    "One checkpoint."
    checkpoint_every: float
    "Seconds between two checkpoints."
    score: float
    "One scoring of the held-out files."
    score_every: int
    "Updates between two scorings; 0 for none on the way."
    checkpoint_factor: float = 1.0
    "Correction by past runs that `checkpoint` contains."
    score_factor: float = 1.0
    "The same of `score`."

    @property
    def once(self) -> float:
        """Seconds of all phases."""
        return sum(part.seconds for part in self.phases)

    def scores(self, updates: int) -> int:
        """Returns the number of scorings on the way of a run with `updates` updates."""
        return max(0, updates - 1) // self.score_every if self.score_every else 0

    def scoring(self, updates: int) -> float:
        """Returns the seconds of all scorings on the way of a run with `updates` updates."""
        return self.score * self.scores(updates)

    def checkpoints(self, seconds: float, updates: int) -> float:
        """Returns the seconds of all checkpoints of a run with `updates` updates that take `seconds`.

        One at the end, one after each scoring, and those that are due between them.
        """
        scores = self.scores(updates)
        between = (seconds + self.scoring(updates)) / (scores + 1)
        return self.checkpoint * (1 + scores + (scores + 1) * (between // self.checkpoint_every))

    def around(self, seconds: float, updates: int) -> float:
        """Returns the seconds of a run with `updates` updates that take `seconds`."""
        return self.once + seconds + self.scoring(updates) + self.checkpoints(seconds, updates)

    def left_of(self, hours: float) -> float:
        """Returns the seconds that `hours` leave to updates, apart from scoring on the way."""
        seconds = hours * 3600 - self.once - self.checkpoint
        return max(0.0, seconds / (1 + self.checkpoint / self.checkpoint_every))


def whole_time(planning: PlanRequest, row: TierPlan) -> WholeTime:
    """Models the phases of a run whose longest windows are those of `row`."""
    work = workload_of(planning, row.context)
    speeds = speeds_of(planning.machine, work)
    tokens = planning.repository_tokens or 0
    score = _score_seconds(planning, row, planning.training.evaluate_tokens)
    evaluation, formula = _evaluation_seconds(planning, row, work, speeds)
    trained = planning.adapter_parameters or planning.spec.parameters
    saved = trained * CHECKPOINT_BYTES / speeds.disk
    stored = planning.spec.parameters * 2
    phases = [
        TimePart(name="starting", seconds=START_SECONDS, formula="imports and the first contact with the device"),
        TimePart(
            name="data",
            seconds=2 + tokens / TOKENS_A_SECOND,
            formula=f"{tokens:,} tokens at {TOKENS_A_SECOND:,.0f} a second",
        ),
        TimePart(
            name="model",
            seconds=2 + stored / speeds.disk,
            formula=f"{stored:.3g} B at {speeds.disk / 1e9:.3g} GB/s",
        ),
        TimePart(name="baseline", seconds=score, formula=_scored(planning)),
        TimePart(name="evaluation", seconds=score + evaluation, formula=_scored(planning) + formula),
        TimePart(
            name="saving",
            seconds=SAVING_SECONDS + trained * 4 / speeds.disk,
            formula=f"{trained * 4:.3g} B at {speeds.disk / 1e9:.3g} GB/s",
        ),
    ]
    if planning.on_gpu:
        formula = "memory is pinned and kernels are planned"
        phases.append(TimePart(name=FIRST_STEP, seconds=FIRST_STEP_SECONDS, formula=formula))
    past = planning.machine.past
    factors: dict[str, float] = {}
    if past is not None:
        phases = [_as_before(part, past.phase_factor(planning.spec.name, part.name)) for part in phases]
        known = {name: past.phase_factor(planning.spec.name, name) for name in (CHECKPOINTS, SCORING)}
        factors = {name: factor for name, factor in known.items() if factor is not None}
    return WholeTime(
        phases=tuple(phases),
        checkpoint=(CHECKPOINT_SECONDS + saved) * factors.get(CHECKPOINTS, 1.0),
        checkpoint_every=planning.checkpoint.every_minutes * 60,
        score=score * factors.get(SCORING, 1.0),
        score_every=planning.training.evaluate_every,
        checkpoint_factor=factors.get(CHECKPOINTS, 1.0),
        score_factor=factors.get(SCORING, 1.0),
    )


def _as_before(part: TimePart, factor: float | None) -> TimePart:
    if factor is None:
        return part
    formula = f"{part.formula}; past runs took {factor:.2g} times that"
    return TimePart(name=part.name, seconds=part.seconds * factor, formula=formula, factor=factor)


def _scored(planning: PlanRequest) -> str:
    return f"{planning.training.evaluate_tokens:,} held-out tokens at most, without a backward pass"


def _score_seconds(planning: PlanRequest, row: TierPlan, most: int) -> float:
    """Returns the seconds of scoring at most `most` held-out tokens in windows of the row's context."""
    tokens = float(most)
    if planning.repository_tokens is not None:
        tokens = min(tokens, planning.repository_tokens * planning.data.held_out_fraction)
    length = max(1, min(row.context, round(tokens)))
    if length < row.context:
        row = plan_context(planning, length)
    return FORWARD_SHARE * row.step_seconds * tokens / (row.windows_per_step * row.context)


def _batches(requests: int) -> int:
    return -(-requests // GENERATED_TOGETHER)


def _evaluation_seconds(planning: PlanRequest, row: TierPlan, work: Workload, speeds: Speeds) -> tuple[float, str]:
    """Returns the seconds of the comparison at the end of a run, and how they come about."""
    settings = planning.evaluation
    if not settings.at_end:
        return 0.0, ""
    spec = planning.spec
    scoring = 2 * _score_seconds(planning, row, settings.tokens)
    # A token of a batch reads every weight once, or waits for its layers' launches.
    token = max(spec.parameters * work.element / speeds.memory, spec.layers * GENERATION_CALLS * speeds.launch)
    # Base and tuned model each complete a function from its head and from both sides, and once more with snippets;
    # the base model also with whole files.
    writing = (7 if settings.retrieval else 4) * _batches(settings.functions) * settings.function_tokens * token
    writing += (4 if settings.retrieval else 2) * _batches(settings.lines) * LINE_TOKENS * token
    asked = f"{settings.functions} functions and {settings.lines} lines"
    formula = f"; {settings.tokens:,} compared twice, and {asked} completed by both models"
    return scoring + writing, formula
