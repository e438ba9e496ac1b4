"""Chooses a run's context: the configured one, checked against the plan, or the best default."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace

from msgspec import structs

from engine.config import RunConfig, TrainingSection
from engine.errors.model import DEVICE_UNAVAILABLE
from engine.errors.planning import CONTEXT_DOES_NOT_FIT, TIER_DOES_NOT_FIT
from engine.hardware.machine import Machine
from engine.hardware.rank_place import Ranks
from engine.models.base_changes import BaseChanges
from engine.models.spec import ModelSpec
from engine.plan.cluster import least_of, share_of
from engine.plan.planner import TierPlan, TierTable, plan_context, recommended_plan, tier_table, way_to_shorter
from engine.plan.request import PlanRequest, without_gpu
from engine.plan.schedule import Schedule, given_stages, make_schedule
from engine.plan.strategy import ranks_to_start
from engine.plan.tiers import tier_of
from engine.plan.whole_time import WholeTime, whole_time
from engine.quantities import format_context, format_seconds


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A context, the plan for it, and the reason for the choice."""

    context: int
    plan: TierPlan
    note: str
    "One sentence for the user."
    schedule: Schedule | None = None
    "Stages of a run whose windows grow; `context` and `plan` are then those of the last one."
    learning_rate: float
    "Peak rate, before training.lr_scaling."
    whole: WholeTime
    "The run's time outside its updates."
    updates: int | None
    "Updates of the whole run, no more than training.max_steps; None where the repository's size is not known."
    host_factor: float = 1.0
    "Host memory that past runs of the model took here over what was predicted, at least 1."

    @property
    def seconds(self) -> float | None:
        """Predicted seconds of the whole run, from its start to its report; None where the updates are not known."""
        if self.schedule is not None and self.updates is not None:
            return self.whole.around(self.schedule.seconds_of(self.updates), self.updates)
        return None if self.updates is None else self.whole.around(self.updates * self.plan.step_seconds, self.updates)

    @property
    def step_seconds(self) -> tuple[float, ...]:
        """Predicted seconds of an update, by stage."""
        return tuple(plan.step_seconds for plan in self.plans)

    @property
    def gpu_peak_bytes(self) -> int:
        """Highest peak of any stage."""
        return max(plan.gpu_peak_bytes for plan in self.plans)

    @property
    def host_peak_bytes(self) -> int:
        """Highest peak of any stage, and no less than what past runs took beside their prediction."""
        return round(max(plan.host_peak_bytes for plan in self.plans) * self.host_factor)

    @property
    def plans(self) -> list[TierPlan]:
        """Plan of each stage; one, where windows are all alike."""
        return [self.plan] if self.schedule is None else [stage.plan for stage in self.schedule.stages]

    def rated(self, config: RunConfig) -> RunConfig:
        """Returns the configuration with the rate."""
        return structs.replace(config, training=structs.replace(config.training, learning_rate=self.learning_rate))

    def training(self, asked: TrainingSection) -> TrainingSection:
        """Returns the section with the rate, and with the schedule's tokens an update."""
        training = structs.replace(asked, learning_rate=self.learning_rate)
        tokens = None if self.schedule is None else self.schedule.tokens_per_update
        return training if tokens is None else structs.replace(training, tokens_per_update=tokens)


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
        raise DEVICE_UNAVAILABLE(device="cuda", problem="no GPU was found")
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
        checkpoint=config.checkpoint,
        evaluation=config.evaluation,
        repository_tokens=repository_tokens,
        fused_kernels=config.model.fused_kernels,
        ranks=ranks.all,
    )


def choose_plan(
    config: RunConfig,
    machine: Machine,
    spec: ModelSpec,
    repository_tokens: int | None,
    ranks: Ranks | None = None,
    *,
    grow: bool = True,
    table: TierTable | None = None,
) -> Choice:
    """Chooses the context of a run and the plan for its step.

    Takes `training.stages`, `hours`, `context` or `tier` if set, else a schedule without a limit of hours. Windows are
    all alike, of the recommended tier, where the repository's size is not known or something else orders them. A
    machine that cannot do tier 1 in reasonable time then gets the largest of SMALL_CONTEXTS that it can. Arguments as
    for `request_of_run`, and:

    Args:
        grow: Whether windows may grow over the run where nothing sets their length.
        table: The tiers of `request_of_run`'s request, if they are planned already.

    Raises:
        EliteError: TIER_DOES_NOT_FIT, CONTEXT_DOES_NOT_FIT, HOURS_TOO_FEW, DEVICE_UNAVAILABLE or PRECISION_UNAVAILABLE.
    """
    planning = request_of_run(config, machine, spec, repository_tokens, ranks)
    training = config.training
    if training.stages:
        choice = _scheduled(planning, given_stages(planning, training.stage_pairs))
    elif training.hours is not None:
        choice = _scheduled(planning, make_schedule(planning, training.hours, training.tier, table=table))
    elif training.context is not None:
        choice = _asked_context(planning, training.context)
    elif isinstance(training.tier, int):
        choice = _asked_tier(planning, training.tier)
    elif training.tier is None and grow and grows(planning):
        choice = _scheduled(planning, make_schedule(planning, None, table=table))
    else:
        choice = _best_context(planning, table or tier_table(planning), highest=training.tier == "max")
    # Where the data are not known, max_steps may be more updates than they give.
    if choice.seconds is not None and choice.schedule is None and repository_tokens is not None:
        note = f"{choice.note}; {format_seconds(choice.seconds)} in all, start, scoring and saving included"
        choice = dataclasses.replace(choice, note=note)
    if planning.machine.past is not None:
        taken = planning.machine.past.host_factor(spec.name)
        choice = dataclasses.replace(choice, host_factor=max(1.0, taken or 1.0))
    factor = BaseChanges.of(config.model, spec, choice.context).yarn_factor
    if factor is not None:
        stretched = f"{choice.note}; YaRN stretches its positions {factor:g} times, past the trained length"
        return dataclasses.replace(choice, note=stretched)
    return choice


def grows(planning: PlanRequest) -> bool:
    """Whether a run without hours, tier or context gets a schedule; pairs and a curriculum need equal windows."""
    training = planning.training
    return planning.train_tokens is not None and training.objective != "dpo" and not training.curriculum


def _scheduled(planning: PlanRequest, schedule: Schedule) -> Choice:
    note = f"{schedule.describe()}{f'; {schedule.note}' if schedule.note else ''}"
    updates, most = schedule.updates, planning.training.max_steps
    if most is not None and most < updates:
        updates = most
        note = f"{note}; stops after {most:,}, as training.max_steps says"
    return Choice(
        context=schedule.longest.context,
        plan=schedule.longest,
        note=note,
        schedule=schedule,
        learning_rate=schedule.learning_rate,
        whole=schedule.whole,
        updates=updates,
    )


def _alike(planning: PlanRequest, row: TierPlan, note: str) -> Choice:
    """Returns the choice of windows that are all alike."""
    training = planning.training
    updates = None
    if row.steps_per_epoch is not None:
        updates = max(1, round(row.steps_per_epoch * training.passes))
    if training.max_steps is not None:
        updates = min(training.max_steps, training.max_steps if updates is None else updates)
    return Choice(
        context=row.context,
        plan=row,
        note=note,
        learning_rate=planning.learning_rate,
        whole=whole_time(planning, row),
        updates=updates,
    )


def _best_context(planning: PlanRequest, table: TierTable, *, highest: bool) -> Choice:
    if highest and table.ceiling is not None:
        return _alike(planning, table.row(table.ceiling), _reasoned(table.row(table.ceiling), table.why_ceiling))
    row, why = recommended_plan(planning, table)
    if row is None:
        lowest = table.tiers[0]
        context = f"{lowest.context:,}"
        raise TIER_DOES_NOT_FIT(tier=1, context=context, reason=lowest.reason, remedy=lowest.remedy)
    return _alike(planning, row, _reasoned(row, why))


def _asked_context(planning: PlanRequest, context: int) -> Choice:
    row = plan_context(planning, context)
    if not row.fits:
        remedy = row.remedy + way_to_shorter(planning, context)
        raise CONTEXT_DOES_NOT_FIT(context=f"{context:,}", reason=row.reason, remedy=remedy)
    return _alike(planning, row, f"context {context:,}, as configured")


def _asked_tier(planning: PlanRequest, number: int) -> Choice:
    tier = tier_of(number)
    row = plan_context(planning, tier.context, tier=number, sees=tier.sees, extreme=tier.extreme)
    if not row.fits:
        remedy = row.remedy + way_to_shorter(planning, tier.context)
        raise TIER_DOES_NOT_FIT(tier=number, context=f"{tier.context:,}", reason=row.reason, remedy=remedy)
    return _alike(planning, row, f"tier {number}, as configured")


def _reasoned(row: TierPlan, why: str) -> str:
    where = (
        f"tier {row.tier}, {format_context(row.context)} tokens" if row.tier else f"windows of {row.context:,} tokens"
    )
    return f"{where}: {why}; a step takes about {format_seconds(row.step_seconds)} (predicted)"
