"""Chooses a run's context: the configured one, checked against the plan, or the best default."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace

from engine import errors
from engine.config import RunConfig
from engine.hardware.machine import Machine
from engine.hardware.rank_place import Ranks
from engine.models.base_changes import BaseChanges
from engine.models.spec import ModelSpec
from engine.plan.cluster import least_of, share_of
from engine.plan.planner import SMALL_CONTEXTS, TierPlan, plan_context, tier_table
from engine.plan.quantities import format_context, format_seconds
from engine.plan.request import PlanRequest, without_gpu
from engine.plan.strategy import ranks_to_start
from engine.plan.tiers import tier_of


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A context, the plan for it, and the reason for the choice."""

    context: int
    plan: TierPlan
    note: str
    "One sentence for the user."


def choose_context(config: RunConfig, machine: Machine, spec: ModelSpec, repository_tokens: int | None) -> int:
    """Returns the tokens per window of a run. See `choose_plan`."""
    return choose_plan(config, machine, spec, repository_tokens).context


def request_of_run(
    config: RunConfig, machine: Machine, spec: ModelSpec, repository_tokens: int | None, ranks: Ranks | None = None
) -> PlanRequest:
    """Builds the planner's request from a configuration and a machine.

    Args:
        config: The run's configuration.
        machine: This host with every GPU that the run may use; in a rank, the least that any rank of a host has.
        spec: The model.
        repository_tokens: Tokens to train on; None is unknown.
        ranks: Number of processes that train together, as a rank knows it from its launcher; None: as the launcher
            would start them.

    Raises:
        EliteError: DEVICE_UNAVAILABLE, PRECISION_UNAVAILABLE, GPUS_MISSING or HOSTFILE_INVALID.
    """
    if config.model.device == "cuda" and not machine.gpus:
        raise errors.DEVICE_UNAVAILABLE(device="cuda", problem="no GPU was found")
    if config.model.device == "cpu":
        machine = without_gpu(machine)
    if ranks is None:
        ranks = ranks_to_start(config, machine)
        if ranks.here > 1 and machine.gpus:
            machine = least_of([replace(machine, gpus=(gpu,)) for gpu in machine.gpus[: ranks.here]])
    if ranks.all > 1:
        machine = share_of(machine, ranks.here)
    return PlanRequest.of(
        machine,
        spec,
        config.model.precision,
        lora=config.lora,
        training=config.training,
        stream=config.stream,
        data=config.data,
        distributed=config.distributed,
        repository_tokens=repository_tokens,
        ranks=ranks.all,
    )


def choose_plan(
    config: RunConfig, machine: Machine, spec: ModelSpec, repository_tokens: int | None, ranks: Ranks | None = None
) -> Choice:
    """Chooses the context of a run and the plan for its step.

    Takes `training.context` or `training.tier` if set, else the recommended tier. A machine that cannot do tier 1 in
    reasonable time gets the largest of SMALL_CONTEXTS that it can. Arguments as for `request_of_run`.

    Raises:
        EliteError: TIER_DOES_NOT_FIT, CONTEXT_DOES_NOT_FIT, DEVICE_UNAVAILABLE or PRECISION_UNAVAILABLE.
    """
    planning = request_of_run(config, machine, spec, repository_tokens, ranks)
    if config.training.context is not None:
        choice = _asked_context(planning, config.training.context)
    elif config.training.tier is not None:
        choice = _asked_tier(planning, config.training.tier)
    else:
        choice = _best_context(planning)
    factor = BaseChanges.of(config.model, spec, choice.context).yarn_factor
    if factor is not None:
        stretched = f"{choice.note}; YaRN stretches its positions {factor:g} times, past the trained length"
        return dataclasses.replace(choice, note=stretched)
    return choice


def _best_context(planning: PlanRequest) -> Choice:
    table = tier_table(planning)
    if table.recommended is not None:
        row = table.row(table.recommended)
        return Choice(context=row.context, plan=row, note=_why(planning, row))
    return _small_context(planning)


def _asked_context(planning: PlanRequest, context: int) -> Choice:
    row = plan_context(planning, context)
    if not row.fits:
        raise errors.CONTEXT_DOES_NOT_FIT(context=f"{context:,}", reason=row.reason, remedy=row.remedy)
    return Choice(context=context, plan=row, note=f"context {context:,}, as configured")


def _asked_tier(planning: PlanRequest, number: int) -> Choice:
    tier = tier_of(number)
    row = plan_context(planning, tier.context, tier=number, sees=tier.sees, extreme=tier.extreme)
    if not row.fits:
        raise errors.TIER_DOES_NOT_FIT(tier=number, context=f"{tier.context:,}", reason=row.reason, remedy=row.remedy)
    return Choice(context=tier.context, plan=row, note=f"tier {number}, as configured")


def _small_context(planning: PlanRequest) -> Choice:
    rows = [plan_context(planning, context) for context in SMALL_CONTEXTS]
    fitting = [row for row in rows if row.fits]
    if not fitting:
        lowest = tier_of(1)
        row = plan_context(planning, lowest.context, tier=1)
        raise errors.TIER_DOES_NOT_FIT(
            tier=1, context=f"{lowest.context:,}", reason=row.reason or rows[0].reason, remedy=row.remedy
        )
    row = next((row for row in reversed(fitting) if row.in_time), fitting[0])
    return Choice(context=row.context, plan=row, note=_why(planning, row))


def _why(planning: PlanRequest, row: TierPlan) -> str:
    where = f"tier {row.tier}" if row.tier else f"context {row.context:,}"
    takes = f"a step takes about {format_seconds(row.step_seconds)} (predicted)"
    if not planning.on_gpu:
        why = "limited so that a window stays short without a GPU"
    else:
        why = "the highest that fits and the repository fills"
    return f"{where}, {format_context(row.context)} tokens: {why}; {takes}"
