"""How long the windows of a run are that asks for no length: at most as long as those that the model was trained with.

In equal time, windows of up to four times the trained length gave models that were 5% worse on held-out windows of the
trained length (docs/experiments.md). Schedules, the recommended tier and runs of equal windows therefore end there.
Longer windows are for a tier or a context that is asked for; `--tier max` asks for the ceiling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from engine.models.spec import ModelSpec
from engine.plan.tiers import LEAST_UPDATES
from engine.quantities import counted, format_context, format_seconds

if TYPE_CHECKING:
    from engine.plan.request import PlanRequest


class Row(Protocol):
    """What the rule asks of a row of the tier table (engine.plan.planner.TierPlan)."""

    @property
    def tier(self) -> int | None:
        """None for a context that belongs to no tier."""

    @property
    def context(self) -> int:
        """Tokens of a window."""

    @property
    def fits(self) -> bool:
        """Whether any plan fits."""

    @property
    def in_time(self) -> bool:
        """Whether it fits and one window takes no longer than `patience`."""

    @property
    def holds_repository(self) -> bool:
        """Whether one window holds all of it."""

    @property
    def steps_per_epoch(self) -> int | None:
        """None where the repository's size is not known."""


_Row = TypeVar("_Row", bound=Row)


def within_trained(spec: ModelSpec, context: int) -> bool:
    """Whether the model was trained with windows of `context` tokens (`max_position_embeddings`)."""
    return context <= spec.max_context


def beyond_trained(spec: ModelSpec, context: int) -> str:
    """Returns the warning of a context beyond the trained one; empty within it."""
    if within_trained(spec, context):
        return ""
    times = context / spec.max_context
    words = f"{times:.2g}" if times < 10 else f"{times:,.0f}"
    return (
        f"{spec.name} was trained on {spec.max_context:,} tokens, and {context:,} are {words} times that: "
        "it has to learn new positions, which takes many updates"
    )


def ceiling_of(rows: Sequence[Row]) -> int | None:
    """Returns the highest tier that fits within `patience` and is not above the smallest that holds the repository."""
    best = None
    for row in rows:
        if row.in_time:
            best = row.tier
        if row.holds_repository:
            break
    return best


def why_ceiling(planning: PlanRequest, rows: Sequence[Row]) -> str:
    """Says what ends the tiers that `--tier max` may take, for `ceiling_of(rows)`; empty where that is None."""
    ceiling = ceiling_of(rows)
    if ceiling is None:
        return ""
    higher = [row for row in rows if row.tier is not None and row.tier >= ceiling]
    if higher[0].holds_repository:
        return "the lowest that holds the whole repository"
    return _in_time(planning) if any(row.fits for row in higher[1:]) else "the highest that fits"


def recommend(planning: PlanRequest, rows: Sequence[_Row]) -> tuple[_Row | None, str]:
    """Chooses the tier of a run whose windows are all alike.

    Returns:
        The highest up to the ceiling and the trained length with LEAST_UPDATES updates, else the lowest, None where
        there is none; and why no higher one.
    """
    ceiling = ceiling_of(rows) or 0
    fitting = [row for row in rows if row.in_time and (row.tier or 0) <= ceiling]
    trained = [row for row in fitting if within_trained(planning.spec, row.context)]
    if not trained:
        return None, _trained_length(planning.spec) if fitting else ""
    enough = [row for row in trained if row.steps_per_epoch is None or _updates(planning, row) >= LEAST_UPDATES]
    best = enough[-1] if enough else trained[0]
    if best is fitting[-1]:
        return best, why_ceiling(planning, rows)
    if best is trained[-1]:
        return best, _trained_length(planning.spec)
    passes = planning.training.passes
    count = counted(_updates(planning, best), "update")
    updates = f"{count} in {'an epoch' if passes == 1 else f'{passes:g} epochs'}"
    if best in enough:
        return best, f"{updates}; longer windows would leave fewer than {LEAST_UPDATES}"
    return best, f"{updates}, and longer windows would leave no more"


def recommend_short(planning: PlanRequest, rows: Sequence[_Row], lowest: Row) -> tuple[_Row | None, str]:
    """Chooses among contexts below tier 1, for a machine or a model that it is too much for.

    Args:
        planning: The request that the rows were planned for.
        rows: Those contexts, ascending.
        lowest: Tier 1.

    Returns:
        The longest whose windows take no longer than `patience`, else the shortest that fits, None where none fits;
        and why no longer one.
    """
    fitting = [row for row in rows if row.fits]
    if not fitting:
        return None, ""
    trained = [row for row in fitting if within_trained(planning.spec, row.context)]
    if not trained:
        return fitting[0], f"the shortest, though {_trained_length(planning.spec)}"
    in_time = [row for row in trained if row.in_time]
    if not in_time:
        return fitting[0], f"the shortest, though a window takes longer than {format_seconds(planning.patience)}"
    best = in_time[-1]
    if lowest.in_time or (len(fitting) > len(trained) and best in trained[-1:]):
        return best, _trained_length(planning.spec)
    if best is fitting[-1] and not lowest.fits:
        return best, "the longest that fits"
    return best, _in_time(planning)


def _updates(planning: PlanRequest, row: Row) -> int:
    return max(1, round((row.steps_per_epoch or 1) * planning.training.passes))


def _trained_length(spec: ModelSpec) -> str:
    return f"{spec.name} was trained on {format_context(spec.max_context)} tokens, and longer windows made models worse"


def _in_time(planning: PlanRequest) -> str:
    where = "" if planning.on_gpu else " without a GPU"
    return f"limited so that a window takes up to {format_seconds(planning.patience)}{where}"
