"""The planner: for each tier the fastest plan that fits, or the reason why none does and the remedy."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from msgspec import structs

from engine.errors.distributed import STRATEGY_UNAVAILABLE
from engine.errors.usage import CONFIG_INVALID
from engine.hardware.machine import Machine
from engine.models.families import refuse
from engine.models.spec import ModelSpec
from engine.plan.memory import Part, StepMemory
from engine.plan.recommendation import beyond_trained, ceiling_of, recommend, recommend_short, why_ceiling
from engine.plan.request import (
    PlanRequest,
    streaming_refusal,
    whole_refusal,
    workload_of,
)
from engine.plan.search import HEADROOM, Budget, Candidate, fastest, ram_overdrawn, search
from engine.plan.step_layout import StepLayout
from engine.plan.strategy import sharding_refusal
from engine.plan.stream_plan import base_weights, in_4_bits, streams
from engine.plan.tiers import tiers
from engine.plan.time import TimePart
from engine.plan.transfers import weights_moved
from engine.plan.workload import Workload
from engine.quantities import format_bytes, format_seconds

SMALL_CONTEXTS = (512, 1024, 2048)
"Contexts below tier 1, for machines that cannot do tier 1."


@dataclass(frozen=True, kw_only=True)
class DisklessPlan:
    """The fastest plan that writes nothing to the disk, where the chosen one does."""

    step_seconds: float
    gpu_peak_bytes: int
    host_peak_bytes: int
    settings: str
    "Settings of the configuration that choose it."


@dataclass(frozen=True, kw_only=True)
class TierPlan:
    """One row of the tier table."""

    tier: int | None
    "None for a context that belongs to no tier."
    context: int
    sees: str
    extreme: bool
    fits: bool
    reason: str
    "Why it does not fit; or another remark."
    remedy: str
    "The cheapest changes that would make it fit; empty where it does."
    gpu_peak_bytes: int
    host_peak_bytes: int
    disk_bytes: int
    moved_bytes: int
    "Bytes that an optimiser update moves between the GPU and host or disk."
    step_seconds: float
    "Seconds per optimiser update, which may gather several windows."
    windows_per_step: int
    steps_per_epoch: int | None
    "None where the repository's size is not known."
    holds_repository: bool
    layout: StepLayout
    "The chosen step layout."
    parts: tuple[Part, ...]
    time: tuple[TimePart, ...]
    "Time model of one window."
    warning: str
    "What speaks against a context that fits; empty where nothing does."
    in_time: bool
    "Whether it fits and one window takes no longer than the recommendation allows."
    weights_moved_bytes: int = 0
    "Bytes of streamed base weights that an optimiser update copies to the GPU."
    written_bytes: int = 0
    "Bytes that an optimiser update writes to the disk."
    diskless: DisklessPlan | None = None
    "None where the chosen plan leaves the disk alone, or where nothing fits without it."

    @property
    def tokens_per_second(self) -> float:
        """Tokens that an optimiser update trains on, over its seconds."""
        return self.windows_per_step * self.context / self.step_seconds

    def as_json(self) -> dict[str, Any]:
        """The row as JSON values; `plan` holds the layout."""
        described = dataclasses.asdict(self)
        del described["layout"]
        described["tokens_per_second"] = self.tokens_per_second
        return {**described, "precision": self.layout.precision, "plan": self.layout.as_json()}


@dataclass(frozen=True, kw_only=True)
class TierTable:
    """Every tier for one model on one machine."""

    recommended: int | None
    "Tier for windows that are all alike; see `engine.plan.recommendation`."
    why: str
    "Why no higher tier is recommended."
    ceiling: int | None
    "Highest tier that fits within `patience` and is not above the smallest that holds the repository: `--tier max`."
    why_ceiling: str
    "Why it is no higher; empty where no tier is the ceiling."
    tiers: tuple[TierPlan, ...]

    def row(self, tier: int) -> TierPlan:
        """Returns the row of one tier.

        Raises:
            KeyError: there is no such tier.
        """
        return {row.tier: row for row in self.tiers}[tier]


def plan_tiers(
    machine: Machine,
    spec: ModelSpec,
    *,
    precision: str = "auto",
    repository_tokens: int | None = None,
) -> TierTable:
    """Plans every tier, with defaults for all other settings.

    Raises:
        EliteError: PRECISION_UNAVAILABLE.
    """
    return tier_table(PlanRequest.of(machine, spec, precision, repository_tokens=repository_tokens))


def tier_table(planning: PlanRequest) -> TierTable:
    """Plans every tier and recommends one."""
    rows = tuple(
        plan_context(planning, tier.context, tier=tier.number, sees=tier.sees, extreme=tier.extreme) for tier in tiers()
    )
    best, why = recommend(planning, rows)
    return TierTable(
        recommended=best.tier if best else None,
        why=why,
        ceiling=ceiling_of(rows),
        why_ceiling=why_ceiling(planning, rows),
        tiers=rows,
    )


def recommended_plan(planning: PlanRequest, table: TierTable) -> tuple[TierPlan | None, str]:
    """Returns the plan of a run whose windows are all alike, and why they are no longer; None where nothing fits.

    It is that of the recommended tier; where none is, of shorter windows.
    """
    if table.recommended is not None:
        return table.row(table.recommended), table.why
    rows = [plan_context(planning, context) for context in SMALL_CONTEXTS]
    return recommend_short(planning, rows, table.tiers[0])


def plan_context(
    planning: PlanRequest, context: int, *, tier: int | None = None, sees: str = "", extreme: bool = False
) -> TierPlan:
    """Returns the best plan for windows of `context` tokens, or the one that is nearest to fitting.

    Raises:
        EliteError: MODEL_FAMILY_UNSUPPORTED, where only the streamed step is allowed and it refuses the model;
            STRATEGY_UNAVAILABLE, where its ranks cannot share a window as the configuration asks.
    """
    budget = Budget.of(planning.machine)
    work = workload_of(planning, context)
    refusal = streaming_refusal(planning.spec, context)
    if planning.step == "streamed" and (problem := streaming_refusal(planning.spec, 0)):
        raise refuse(planning.spec.family, "streamed", problem)
    if work.ranks > 1 and (problem := sharding_refusal(planning.spec)):
        strategy, remedy = planning.distributed.strategy, "use --set distributed.strategy=data"
        raise STRATEGY_UNAVAILABLE(strategy=strategy, problem=problem, remedy=remedy)
    found = _candidates(planning, work, budget, refusal)
    if not found:
        raise CONFIG_INVALID(
            source="configuration",
            field="stream.kv_home",
            problem="processes that share a window exchange keys and values from GPU to GPU",
            remedy="leave it out, or set distributed.strategy=data",
        )
    barred = _barred(planning, context)
    fitting = [candidate for candidate in found if candidate.fits and not barred]
    windows = planning.windows_per_update(context)
    turns = windows if work.ranks > 1 else math.ceil(windows / planning.ranks)
    in_time = [candidate for candidate in fitting if candidate.seconds <= planning.patience]
    chosen = fastest(in_time or fitting) if fitting else min(found, key=_shortage_rank)
    seconds = turns * chosen.seconds
    tokens = planning.repository_tokens
    trained = planning.train_tokens
    steps = None if trained is None else _steps(trained, windows * context)
    reason, remedy = "", ""
    if barred:
        reason, remedy = barred, "a shorter context, or a model whose positions do not depend on it"
    elif not fitting:
        reason, remedy = _explain(found, chosen, planning.machine)
        if refusal:
            reason = f"{reason}; tile by tile it would need less, but {refusal}"
            remedy = f"{remedy}, or a model whose family streams, such as qwen2 or llama"
        if names := _in_the_way(planning, work, budget, refusal):
            remedy = f"it would fit without {names}; with it, {remedy}"
    elif not in_time:
        limit = format_seconds(planning.patience)
        reason = f"one window takes about {format_seconds(chosen.seconds)}; recommended is what takes up to {limit}"
    return TierPlan(
        tier=tier,
        context=context,
        sees=sees,
        extreme=extreme,
        fits=bool(fitting),
        reason=reason,
        remedy=remedy,
        gpu_peak_bytes=chosen.ledger.peak("gpu"),
        host_peak_bytes=chosen.ledger.peak("host"),
        disk_bytes=chosen.ledger.peak("disk"),
        moved_bytes=turns * chosen.moved_bytes,
        step_seconds=seconds,
        windows_per_step=windows,
        steps_per_epoch=steps,
        holds_repository=tokens is not None and context >= tokens,
        layout=chosen.layout,
        parts=chosen.ledger.parts,
        time=chosen.time,
        warning=beyond_trained(planning.spec, context),
        in_time=bool(in_time),
        weights_moved_bytes=_moved(planning, context, chosen.layout) * windows,
        written_bytes=turns * chosen.written_bytes,
        diskless=_diskless(chosen, fitting, turns),
    )


def _diskless(chosen: Candidate, fitting: list[Candidate], turns: int) -> DisklessPlan | None:
    dry = [candidate for candidate in fitting if not candidate.writes_disk]
    if not chosen.writes_disk or not dry:
        return None
    best = fastest(dry)
    stream = best.layout.stream
    settings = "training.step=whole"
    if stream is not None:
        homes = f"stream.hidden_home={stream.hidden_home} stream.gradient_home={stream.gradient_home} stream.stash="
        settings = f"{homes}true stream.stash_home={stream.stash_home}" if stream.stash else f"{homes}false"
    return DisklessPlan(
        step_seconds=turns * best.seconds,
        gpu_peak_bytes=best.ledger.peak("gpu"),
        host_peak_bytes=best.ledger.peak("host"),
        settings=settings,
    )


def _moved(planning: PlanRequest, context: int, layout: StepLayout) -> int:
    """Bytes of base weights that one window's step copies to the GPU."""
    return 0 if layout.stream is None else weights_moved(workload_of(planning, context), layout.stream)


def _barred(planning: PlanRequest, context: int) -> str | None:
    """Returns why no allowed way to compute a step takes a context, regardless of memory; None where one does."""
    streamed, whole = streaming_refusal(planning.spec, context), whole_refusal(planning.spec, context)
    problems = {"streamed": (streamed,), "whole": (whole,), "auto": (streamed, whole)}[planning.step]
    return problems[0] if all(problems) else None


def _candidates(planning: PlanRequest, work: Workload, budget: Budget, refusal: str | None) -> list[Candidate]:
    """Returns every plan considered for windows of this workload, whether it fits or not."""
    weights, way = planning.weights, planning.step
    if planning.fixed.get("weights_home") == "disk" and planning.spec.sparse_layers:
        raise CONFIG_INVALID(
            source="configuration",
            field="stream.weights_home",
            problem=f"no 4-bit copy of {planning.spec.name} is kept, whose experts stay in 16 bits",
            remedy="leave it out",
        )
    if (asked := planning.fixed.get("weights")) is not None:
        storages = [base_weights(four_bit=in_4_bits(each), streamed=asked == "streamed") for each in weights]
        weights = tuple(dict.fromkeys(storages))
    if work.ranks > 1:  # only the streamed step can share a window
        way = "streamed"
    elif planning.ranks > 1 and planning.distributed.strategy in ("zero2", "zero3") and way == "auto":
        way = "whole"
    if not refusal and whole_refusal(planning.spec, work.context * work.ranks):
        way = "streamed"
    if refusal:  # whole windows need all weights at once
        weights, way = tuple(storage for storage in weights if not streams(storage)), "whole"
    works = [
        dataclasses.replace(work, master_home=home, table_home=table)
        for home in _master_homes(planning)
        for table in _table_homes(planning)
    ]
    memory, again = StepMemory(), planning.training.recompute
    found = [
        candidate
        for each in works
        for candidate in search(each, planning.machine, budget, weights, way, again, planning.fixed, memory)
    ]
    if work.ranks > 1:  # ranks exchange keys and values between GPUs
        found = [c for c in found if (stream := c.layout.stream) is None or stream.kv_home == "gpu"]
    return found


def _in_the_way(planning: PlanRequest, work: Workload, budget: Budget, refusal: str | None) -> str:
    """Names the fixed settings that keep every plan from fitting: one if it alone does, else all; or ""."""

    def fits_without(names: Collection[str]) -> bool:
        free = dataclasses.replace(planning, stream=structs.replace(planning.stream, **dict.fromkeys(names)))
        return any(candidate.fits for candidate in _candidates(free, work, budget, refusal))

    if not planning.fixed or not fits_without(planning.fixed):
        return ""
    alone = next((name for name in planning.fixed if fits_without({name})), None)
    names = planning.fixed if alone is None else {alone: planning.fixed[alone]}
    return " and ".join(f"stream.{name}={str(value).lower()}" for name, value in names.items())


def _master_homes(planning: PlanRequest) -> tuple[Literal["gpu", "host"] | None, ...]:
    """Allowed homes of the fp32 master weights; (None,) where an adapter is trained."""
    if planning.trains_adapter:
        return (None,)
    return ("gpu", "host") if planning.on_gpu else ("host",)


def _table_homes(planning: PlanRequest) -> tuple[Literal["gpu", "host"], ...]:
    """Allowed homes of the table of the layers' own inputs; a trained one stays where its gradient is computed."""
    movable = planning.spec.layer_input and planning.trains_adapter and planning.on_gpu and planning.ranks == 1
    return ("gpu", "host") if movable else ("gpu",)


def _steps(tokens: float, tokens_a_step: int) -> int:
    return max(1, math.ceil(tokens / tokens_a_step))


def _shortage_rank(candidate: Candidate) -> tuple[int, int, int]:
    """Orders by cost: a missing GPU costs more than missing RAM, and RAM more than disk."""
    return candidate.short_of("gpu"), candidate.short_of("host"), candidate.short_of("disk")


def _explain(found: list[Candidate], closest: Candidate, machine: Machine) -> tuple[str, str]:
    """Returns why nothing fits, and the cheapest changes that would make a plan fit."""
    budget, overdrawn = Budget.of(machine), ram_overdrawn(machine)
    on_device = [candidate for candidate in found if not candidate.short_of("gpu")]
    if not on_device:
        needed = closest.ledger.peak("gpu")
        reason = f"the leanest plan needs {format_bytes(needed)} on the GPU, and {format_bytes(budget.gpu)} can be used"
        return reason, f"a GPU with {_to_add(closest.short_of('gpu'))} more free memory, or a smaller model"
    in_ram = [candidate for candidate in on_device if not candidate.short_of("disk")]
    on_disk = [candidate for candidate in on_device if candidate.short_of("disk")]
    changes = []
    if in_ram:
        changes.append(f"{_to_add(min(one.short_of('host') for one in in_ram) + overdrawn)} more RAM")
    if on_disk:
        leanest = min(on_disk, key=lambda c: (c.short_of("host"), c.short_of("disk")))
        short = leanest.short_of("host")
        both = f"{_to_add(short + overdrawn)} more RAM and " if short else ""
        changes.append(f"{both}{_to_add(leanest.short_of('disk'))} more free disk")
    where = closest.shortages[0][0]
    place = "RAM" if where == "host" else "free disk"
    reason = (
        f"the leanest plan needs {format_bytes(closest.ledger.peak(where))} of {place}, "
        f"and {format_bytes(budget.limit(where))} can be used"
    )
    if where == "host" and overdrawn:
        free, total = format_bytes(machine.ram_available), format_bytes(machine.ram_total)
        reason += f": {free} are free, and {HEADROOM:.0%} of {total} stay free"
    return reason, "needs " + ", or ".join(changes)


def _to_add(lacking: int) -> str:
    """Names the memory to add; of added memory, too, the headroom stays free."""
    return format_bytes(lacking / (1 - HEADROOM))


def way_to_shorter(planning: PlanRequest, context: int) -> str:
    """Returns the clause of a remedy that names the longest windows below `context` that fit; empty where none do."""
    known = sorted({*SMALL_CONTEXTS, *(tier.context for tier in tiers())}, reverse=True)
    for shorter in known:
        if shorter < context and plan_context(planning, shorter).fits:
            return f", or use --set training.context={shorter} in its place, which fits"
    return ""


def largest_context(planning: PlanRequest, *, step: int = 1024) -> TierPlan | None:
    """Returns the largest context that fits, in multiples of `step` up to twice the highest tier; None if none fits."""
    low, high = 0, 2 * tiers()[-1].context // step
    best = None
    while low < high:
        middle = (low + high + 1) // 2
        row = plan_context(planning, middle * step)
        if row.fits:
            low, best = middle, row
        else:
            high = middle - 1
    return best
