"""The schedule of a run: which windows, how many updates of each length, and what each tier adds.

A context that grows over the run (GrowLength, arXiv 2310.00576): most updates are on short windows, where a token costs
least, and the last ones on the longest windows that the hours, if any are given, and the repository's tokens allow.
Windows longer than those that the model was trained with are for a tier that is asked for: in equal time they gave a
model that was 5% worse on held-out windows of the trained length (docs/experiments.md).
Pure arithmetic over `engine.plan.planner`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from msgspec import structs

from engine.errors import EliteError
from engine.errors.planning import CONTEXT_DOES_NOT_FIT, HOURS_TOO_FEW, TIER_DOES_NOT_FIT
from engine.plan.planner import SMALL_CONTEXTS, TierPlan, TierTable, plan_context, tier_table
from engine.plan.recommendation import within_trained
from engine.plan.request import PlanRequest
from engine.plan.step_layout import StepLayout
from engine.plan.tiers import LEAST_UPDATES, tiers
from engine.plan.whole_time import WholeTime, whole_time
from engine.quantities import counted, format_context, format_seconds

MOST_EPOCHS = 3.0
"Passes over a repository, unless training.epochs is set: fine-tuning on code gains little from more, and forgets."
LONG_UPDATES = 4
"Updates from which a stage of long windows is worth its time."
LONG_SHARE, MIDDLE_SHARE, SHORT_SHARE = 1 / 2, 1 / 4, 1 / 4
"""Of the time and of the tokens: at most for the longest windows and for those between, at least for the short ones.
Up to the trained length, short windows alone gave a model no better (docs/experiments.md)."""
RESERVE = 0.05
"Share of the hours that is not planned with: steps differ by a few percent from their prediction."
_UNLIMITED = 1e12
"Seconds that stand for a run without a limit of hours."
_UPDATE_TOKENS = (8192, 4096, 2048, 1024, 512)
"Tokens of a short update, the fewest for repositories and hours that allow too few updates of more."
_WIDE = 16
"Ratio of longest to shortest windows from which a stage between them is worthwhile."


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Updates on windows of one length."""

    plan: TierPlan
    updates: int

    @property
    def context(self) -> int:
        """Tokens of a window."""
        return self.plan.context

    @property
    def seconds(self) -> float:
        """Seconds of all its updates."""
        return self.updates * self.plan.step_seconds

    @property
    def tokens(self) -> int:
        """Tokens of all its updates, in full windows."""
        return self.updates * self.plan.windows_per_step * self.plan.context

    def as_json(self) -> dict[str, Any]:
        """The stage as JSON values; `from_json` of a schedule reads it."""
        return {
            "tier": self.plan.tier,
            "context": self.context,
            "updates": self.updates,
            "seconds": self.seconds,
            "windows_per_update": self.plan.windows_per_step,
            "layout": self.plan.layout.as_json(),
        }


@dataclass(frozen=True, kw_only=True)
class Addition:
    """What the longest windows of one tier cost."""

    plan: TierPlan
    updates: int
    taken: bool
    "Whether the schedule goes that far."
    beyond_trained: bool
    "Whether the windows are longer than those that the model was trained with."

    def as_json(self) -> dict[str, Any]:
        """The addition as JSON values."""
        seconds = self.updates * self.plan.step_seconds
        return {
            "tier": self.plan.tier,
            "context": self.plan.context,
            "updates": self.updates,
            "seconds": seconds,
            "taken": self.taken,
            "beyond_trained": self.beyond_trained,
        }


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Stages of a run by rising context, and the time around them."""

    stages: tuple[Stage, ...]
    tokens_per_update: int | None
    "Of short windows; None leaves training.tokens_per_update as it is."
    hours: float | None
    "Hours that it was made for; None where none were given."
    whole: WholeTime
    learning_rate: float
    train_tokens: float | None
    note: str
    "Why there are fewer than LEAST_UPDATES updates; empty where there are not."
    additions: tuple[Addition, ...] = ()

    @property
    def updates(self) -> int:
        """Updates of all stages."""
        return sum(stage.updates for stage in self.stages)

    @property
    def step_seconds(self) -> float:
        """Seconds of all updates."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def seconds(self) -> float:
        """Seconds of the whole run, from its start to its report."""
        return self.whole.around(self.step_seconds, self.updates)

    def seconds_of(self, updates: int) -> float:
        """Returns the seconds of the first `updates` updates."""
        seconds = 0.0
        for stage in self.stages:
            made = min(stage.updates, updates)
            seconds += made * stage.plan.step_seconds
            updates -= made
        return seconds

    @property
    def epochs(self) -> float | None:
        """Passes over the training files; None where their size is not known."""
        tokens = sum(stage.tokens for stage in self.stages)
        return tokens / self.train_tokens if self.train_tokens else None

    @property
    def longest(self) -> TierPlan:
        """Plan of the last stage, which has the longest windows."""
        return self.stages[-1].plan

    @property
    def layouts(self) -> tuple[StepLayout, ...]:
        """How each stage computes a step."""
        return tuple(stage.plan.layout for stage in self.stages)

    def as_json(self) -> dict[str, Any]:
        """The schedule as JSON values, in seconds."""
        return {
            "updates": self.updates,
            "seconds": self.seconds,
            "hours": self.hours,
            "epochs": self.epochs,
            "tokens_per_update": self.tokens_per_update,
            "learning_rate": self.learning_rate,
            "stages": [stage.as_json() for stage in self.stages],
            "around": [
                {"name": part.name, "seconds": part.seconds, "formula": part.formula} for part in self.whole.phases
            ],
            "checkpoint_seconds": self.whole.checkpoint,
            "additions": [addition.as_json() for addition in self.additions],
            "note": self.note,
        }

    def describe(self) -> str:
        """Describes stages and time in one sentence."""
        stages = ", then ".join(
            f"{stage.updates:,} on windows of {format_context(stage.context)}" for stage in self.stages
        )
        epochs = "" if self.epochs is None else f", {self.epochs:.1f} epochs"
        budget = "" if self.hours is None else f" of {format_seconds(3600 * self.hours)}"
        return f"updates: {stages}{epochs}; {format_seconds(self.seconds)}{budget} in all (predicted)"


def make_schedule(
    planning: PlanRequest,
    hours: float | None,
    tier: int | Literal["max"] | None = None,
    *,
    table: TierTable | None = None,
) -> Schedule:
    """Makes the schedule of a run that ends within the hours.

    Args:
        planning: Machine, model and settings. `training.epochs` and `training.tokens_per_update` are kept where set.
        hours: Hours that the whole run may take. None is no limit, for a repository of known size: its tokens bound the
            schedule, and one window takes no longer than the request's patience.
        tier: The tier of the last stage; "max" is the highest that fits and the repository fills; None is the highest
            that hours and tokens allow.
        table: The request's tiers, if they are planned already.

    Raises:
        EliteError: TIER_DOES_NOT_FIT, or HOURS_TOO_FEW for LEAST_UPDATES updates.
        ValueError: neither hours nor the repository's tokens bound the schedule.
    """
    if hours is None and planning.train_tokens is None:
        raise ValueError("a schedule without hours needs a repository of known size")
    return _Scheduler(planning, hours).schedule(tier, table or tier_table(planning))


def given_stages(planning: PlanRequest, pairs: Sequence[tuple[int, int]]) -> Schedule:
    """Plans stages that the configuration names, as (context, updates) by rising context.

    Raises:
        EliteError: CONTEXT_DOES_NOT_FIT.
    """
    top = _planned(planning, pairs[-1][0])
    like = alike(planning, top)
    plans = [*(_planned(like, context) for context, _ in pairs[:-1]), top]
    for plan in plans:
        if not plan.fits:
            context = f"{plan.context:,}"
            raise CONTEXT_DOES_NOT_FIT(context=context, reason=plan.reason, remedy=plan.remedy)
    return Schedule(
        stages=tuple(Stage(plan=plan, updates=count) for plan, (_, count) in zip(plans, pairs, strict=True)),
        tokens_per_update=planning.training.tokens_per_update,
        hours=None,
        whole=whole_time(planning, top),
        learning_rate=planning.learning_rate,
        train_tokens=planning.train_tokens,
        note="",
    )


def alike(planning: PlanRequest, top: TierPlan) -> PlanRequest:
    """Returns the request for shorter stages of a run: weights stay as the longest windows need them.

    The base model is loaded once, and processes that share windows do so throughout.
    """
    distributed = planning.distributed
    if planning.ranks > 1 and distributed.strategy == "auto":
        strategy = "ring" if top.layout.window_ranks > 1 else "data"
        distributed = structs.replace(distributed, strategy=strategy)
    return replace(planning, weights=(top.layout.weights,), distributed=distributed)


def _planned(planning: PlanRequest, context: int) -> TierPlan:
    tier = next((tier for tier in tiers() if tier.context == context), None)
    if tier is None:
        return plan_context(planning, context)
    return plan_context(planning, context, tier=tier.number, sees=tier.sees, extreme=tier.extreme)


class _Scheduler:
    """Searches the schedule of one request."""

    def __init__(self, planning: PlanRequest, hours: float | None) -> None:
        self._planning, self._hours = planning, hours
        training = planning.training
        passes = MOST_EPOCHS if training.epochs is None else training.epochs
        self._tokens = math.inf if planning.train_tokens is None else passes * planning.train_tokens
        self._rows: dict[tuple[object, ...], TierPlan] = {}

    def schedule(self, tier: int | Literal["max"] | None, table: TierTable) -> Schedule:
        if isinstance(tier, int) or (tier == "max" and table.ceiling is not None):
            return self._to(table, tier if isinstance(tier, int) else table.ceiling or 1)
        tops = [row for row in table.tiers if row.fits and row.tier is not None and row.tier <= (table.ceiling or 0)]
        for top in reversed([row for row in tops if within_trained(self._planning.spec, row.context)]):
            stages, whole = self._grown(top, LONG_UPDATES)
            if stages:
                return self._made(stages, whole, table)
        return self._short(table)

    def _to(self, table: TierTable, number: int) -> Schedule:
        """Returns a schedule whose last stage is a tier that was asked for."""
        top = table.row(number)
        if not top.fits:
            remedy = top.remedy
            if lower := [row.tier for row in table.tiers if row.fits and row.context < top.context]:
                remedy += f", or use --tier {lower[-1]}, which fits"
            elif plan_context(self._planning, min(SMALL_CONTEXTS)).fits:
                remedy += ", or leave --tier out: shorter windows fit"
            raise TIER_DOES_NOT_FIT(tier=number, context=f"{top.context:,}", reason=top.reason, remedy=remedy)
        stages, whole = self._grown(top, LONG_UPDATES)
        if not stages:
            stages, whole = self._grown(top, 1, asked=True)
        if not stages:
            short = self._row(alike(self._planning, top), _UPDATE_TOKENS[-1], min(SMALL_CONTEXTS))
            raise self._too_few(f"tier {number}", LEAST_UPDATES * short.step_seconds + top.step_seconds, whole)
        return self._made(stages, whole, table)

    def _short(self, table: TierTable) -> Schedule:
        """Returns a schedule of short windows alone."""
        lowest = plan_context(self._planning, min(SMALL_CONTEXTS))
        if not lowest.fits:
            row = table.row(1)
            raise TIER_DOES_NOT_FIT(
                tier=1, context=f"{row.context:,}", reason=row.reason or lowest.reason, remedy=row.remedy
            )
        like = alike(self._planning, lowest)
        whole = whole_time(like, lowest)
        base = self._base(like, self._available(whole), math.inf, share=1.0)
        stages = self._alone(base, whole)
        if not stages:
            fewest = max(1, min(LEAST_UPDATES, self._count(base, self._tokens)))
            raise self._too_few(f"{fewest} updates", fewest * self._cost(base, whole), whole)
        return self._made(stages, whole, table)

    def _alone(self, base: TierPlan, whole: WholeTime) -> list[Stage]:
        """Returns one stage of short windows; none where the hours do not allow LEAST_UPDATES."""
        most = max(1, self._count(base, self._tokens))
        updates = self._count(base, most * _tokens_of(base), self._available(whole) / self._cost(base, whole))
        return [Stage(plan=base, updates=updates)] if updates >= min(LEAST_UPDATES, most) else []

    def _grown(self, top: TierPlan, least: int, *, asked: bool = False) -> tuple[list[Stage], WholeTime]:
        """Returns stages that end with at least `least` updates at `top`; none where hours or tokens do not allow it.

        Shares of the time and of the tokens bound each stage, and what is left goes to the short windows. Where the
        tier was asked for, only the hours bound it.
        """
        like = alike(self._planning, top)
        whole = whole_time(like, top)
        time, tokens = self._available(whole), self._tokens
        base = self._base(like, time, top.context, share=SHORT_SHARE)
        if top.context <= base.context:
            return self._alone(base, whole), whole
        short_cost, long_cost = self._cost(base, whole), self._cost(top, whole)
        short = max(1, min(LEAST_UPDATES, self._count(base, tokens)))
        rest = time - short * short_cost
        if least * long_cost > (rest if asked else min(LONG_SHARE * time, rest)):
            return [], whole
        if not asked and least * _tokens_of(top) > LONG_SHARE * tokens:
            return [], whole
        short = max(short, self._count(base, SHORT_SHARE * tokens, SHORT_SHARE * time / short_cost))
        short = min(short, math.floor((time - least * long_cost) / short_cost))
        rest = time - short * short_cost
        middle = self._between(like, base, top, whole, min(MIDDLE_SHARE * time, rest - least * long_cost))
        rest -= sum(stage.updates * self._cost(stage.plan, whole) for stage in middle)
        long = max(least, min(short, self._count(top, LONG_SHARE * tokens, rest / long_cost)))
        stages = [*middle, Stage(plan=top, updates=long)]
        rest -= long * long_cost
        left = tokens - short * _tokens_of(base) - sum(stage.tokens for stage in stages)
        short += max(0, self._count(base, left, rest / short_cost))
        return [Stage(plan=base, updates=short), *stages], whole

    def _between(self, like: PlanRequest, base: TierPlan, top: TierPlan, whole: WholeTime, time: float) -> list[Stage]:
        """Returns a stage of windows between the shortest and the longest, where they are far apart."""
        if top.context < _WIDE * base.context:
            return []
        middle = self._row(like, _tokens_of(base), _middle(base.context, top.context))
        updates = self._count(middle, MIDDLE_SHARE * self._tokens, max(0.0, time) / self._cost(middle, whole))
        return [Stage(plan=middle, updates=updates)] if middle.fits and updates >= LONG_UPDATES else []

    def _base(self, like: PlanRequest, time: float, longest: float, *, share: float) -> TierPlan:
        """Returns the plan of short windows: the most tokens an update that allow LEAST_UPDATES in a share of both."""
        rows = list(self._bases(like, longest))
        for row in rows:
            in_time = LEAST_UPDATES * row.step_seconds <= share * time
            if in_time and LEAST_UPDATES * _tokens_of(row) <= share * self._tokens:
                return row
        return rows[-1]

    def _bases(self, like: PlanRequest, longest: float) -> Iterator[TierPlan]:
        asked = self._planning.training.tokens_per_update
        known = sorted({*SMALL_CONTEXTS, *(tier.context for tier in tiers()[:2])})
        contexts = [context for context in known if within_trained(self._planning.spec, context)] or known[:1]
        for tokens in (asked,) if asked else _UPDATE_TOKENS:
            allowed = [context for context in contexts if context <= min(max(tokens, contexts[0]), longest)]
            rows = [self._row(like, tokens, context) for context in allowed or contexts[:1]]
            fitting = [row for row in rows if row.fits]
            if self._hours is None:  # nothing else keeps a machine without a GPU from windows that take minutes
                fitting = [row for row in fitting if row.in_time] or fitting[:1]
            yield (fitting or rows[:1])[-1]

    def _row(self, like: PlanRequest, tokens: int, context: int) -> TierPlan:
        key = (like.weights, like.distributed.strategy, tokens, context)
        if key not in self._rows:
            training = structs.replace(like.training, tokens_per_update=tokens)
            self._rows[key] = _planned(replace(like, training=training), context)
        return self._rows[key]

    def _available(self, whole: WholeTime) -> float:
        return _UNLIMITED if self._hours is None else (1 - RESERVE) * whole.left_of(self._hours)

    @staticmethod
    def _cost(row: TierPlan, whole: WholeTime) -> float:
        """Returns the seconds of an update with its share of the scorings on the way, each with a checkpoint."""
        scored = whole.score + whole.checkpoint
        return row.step_seconds + (scored / whole.score_every if whole.score_every else 0.0)

    def _count(self, row: TierPlan, tokens: float, updates: float = math.inf) -> int:
        most = min(tokens / _tokens_of(row), updates)
        return math.floor(min(most, 1e9))

    def _made(self, stages: list[Stage], whole: WholeTime, table: TierTable) -> Schedule:
        base, top = stages[0].plan, stages[-1].plan
        updates = sum(stage.updates for stage in stages)
        note = ""
        if updates < LEAST_UPDATES:
            tokens, epochs = self._planning.train_tokens or 0, self._planning.training.epochs or MOST_EPOCHS
            read = "once" if epochs == 1 else f"{epochs:g} times"
            note = (
                f"only {counted(updates, 'update')} of {_tokens_of(base):,} tokens: the {tokens:,.0f} tokens to train "
                f"on, read {read}, hold no more; learning needs about {LEAST_UPDATES}"
            )
        additions = [
            Addition(
                plan=row,
                updates=LONG_UPDATES,
                taken=row.context <= top.context,
                beyond_trained=not within_trained(self._planning.spec, row.context),
            )
            for row in table.tiers
            if row.fits and row.context > base.context
        ]
        return Schedule(
            stages=tuple(stages),
            tokens_per_update=_tokens_of(base),
            hours=self._hours,
            whole=whole,
            learning_rate=self._planning.learning_rate,
            train_tokens=self._planning.train_tokens,
            note=note,
            additions=tuple(additions),
        )

    def _too_few(self, what: str, seconds: float, whole: WholeTime) -> EliteError:
        needed = whole.around(seconds / (1 - RESERVE), LEAST_UPDATES) / 3600
        # Rounded up to two digits, so that asking for as much is enough.
        digits = 1 - math.floor(math.log10(needed))
        enough = math.ceil(needed * 1.02 * 10**digits) / 10**digits
        return HOURS_TOO_FEW(hours=f"{self._hours or 0:g}", what=what, needed=f"{enough:g}")


def _tokens_of(row: TierPlan) -> int:
    return row.windows_per_step * row.context


def _middle(low: int, high: int) -> int:
    """Returns the context of the tier nearest to the geometric mean."""
    mean = math.sqrt(low * high)
    return min((tier.context for tier in tiers()), key=lambda context: abs(math.log(context / mean)))
