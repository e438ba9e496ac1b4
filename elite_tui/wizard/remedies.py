"""Finds changes with which a context or a model fits, by planning again with one change at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from elite_tui.format.figures import bytes_in_words, parameters_in_words

if TYPE_CHECKING:
    from engine.config import RunConfig
    from engine.hardware.machine import Machine
    from engine.models.spec import ModelSpec
    from engine.plan.planner import TierPlan
    from engine.plan.request import PlanRequest

RAM_SIZES = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
VRAM_SIZES = (4, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 80, 96, 141, 180)
DISK_SIZES = (100, 250, 500, 1000, 2000, 4000, 8000)
"Disk sizes on sale, in GiB."


@dataclass(frozen=True, kw_only=True)
class Way:
    """One change with which a context fits."""

    change: str
    "The change in words: 64 GiB of RAM."
    step_seconds: float
    note: str = ""
    "Further information."


@dataclass(frozen=True, kw_only=True)
class WaysToFit:
    """All changes that let one context fit."""

    context: int
    ways: tuple[Way, ...]
    "Empty if no known change helps."


@dataclass(frozen=True, kw_only=True)
class ModelOutlook:
    """The tiers of one model of the catalogue on a machine."""

    spec: ModelSpec
    recommended: TierPlan | None
    "Windows below tier 1 where no tier is recommended."
    highest: TierPlan | None
    "The highest tier that fits, regardless of its duration."


def outlooks(
    config: RunConfig,
    machine: Machine,
    models: Sequence[ModelSpec],
    tokens: int | None,
    progress: Callable[[ModelOutlook], None],
) -> list[ModelOutlook]:
    """Plans the tiers of each model with a configuration's other settings; passes each to `progress` as it is planned.

    Raises:
        EliteError: DEVICE_UNAVAILABLE or PRECISION_UNAVAILABLE.
    """
    from engine.plan.choice import request_of_run
    from engine.plan.planner import recommended_plan, tier_table

    found = []
    for spec in models:
        planning = request_of_run(config, machine, spec, tokens)
        table = tier_table(planning)
        fitting = [row for row in table.tiers if row.fits]
        found.append(
            ModelOutlook(
                spec=spec,
                recommended=recommended_plan(planning, table)[0] if fitting else None,
                highest=fitting[-1] if fitting else None,
            )
        )
        progress(found[-1])
    return found


def ways_to_fit(
    config: RunConfig,
    machine: Machine,
    spec: ModelSpec,
    models: Sequence[ModelSpec],
    tokens: int | None,
    context: int,
) -> WaysToFit:
    """Finds changes of the configuration, then of the machine, each the smallest of its kind that lets a context fit.

    Args:
        config: The run's configuration; its context is ignored.
        machine: The machine to fit.
        spec: The model.
        models: Candidates to replace it.
        tokens: Size of the repository; None if it was not read.
        context: Tokens per window.

    Raises:
        EliteError: DEVICE_UNAVAILABLE or PRECISION_UNAVAILABLE.
    """
    from engine.plan.choice import request_of_run

    planning = request_of_run(config, machine, spec, tokens)
    ways = [*_other_settings(planning, context), *_smaller_models(planning, models, context)]
    ways += _more_of_one(planning, context) or _more_of_both(planning, context)
    return WaysToFit(context=context, ways=tuple(ways))


def _other_settings(planning: PlanRequest, context: int) -> Iterator[Way]:
    from msgspec import structs

    from engine.plan.request import storage

    if planning.training.step != "auto" and (row := _fitting(planning.stepping("auto"), context)):
        yield Way(change="training.step auto", step_seconds=row.step_seconds)
    if "nf4" not in planning.weights:
        compute_type, weights = storage(planning.machine, "nf4")
        if row := _fitting(replace(planning, compute_type=compute_type, weights=weights), context):
            yield Way(change="model.precision nf4", step_seconds=row.step_seconds, note="4-bit base weights (QLoRA)")
    for rank in (8, 4):
        smaller = replace(planning, lora=structs.replace(planning.lora, rank=rank))
        if rank < planning.lora.rank and (row := _fitting(smaller, context)):
            yield Way(change=f"lora.rank {rank}", step_seconds=row.step_seconds)
            return


def _smaller_models(planning: PlanRequest, models: Sequence[ModelSpec], context: int) -> Iterator[Way]:
    smaller = [spec for spec in models if spec.parameters < planning.spec.parameters and spec.name != "demo"]
    for spec in sorted(smaller, key=lambda spec: -spec.parameters):
        if row := _fitting(replace(planning, spec=spec), context):
            yield Way(
                change=spec.name,
                step_seconds=row.step_seconds,
                note=f"{parameters_in_words(spec.parameters)} parameters, licence {spec.licence}",
            )
            return


def _more_of_one(planning: PlanRequest, context: int) -> list[Way]:
    machine = planning.machine
    found = []
    for label, sizes, grown in (
        ("RAM", RAM_SIZES, with_ram),
        ("GPU memory", VRAM_SIZES if machine.gpus else (), with_vram),
        ("free disk", DISK_SIZES, with_disk),
    ):
        for size in sizes:
            larger = grown(machine, size)
            if larger is not None and (row := _fitting(replace(planning, machine=larger), context)):
                found.append(
                    Way(change=f"{size:,} GiB of {label}", step_seconds=row.step_seconds, note=_had(machine, label))
                )
                break
    return found


def _more_of_both(planning: PlanRequest, context: int) -> list[Way]:
    """Finds the least GPU memory, and with it the least RAM, if neither alone suffices."""
    machine = planning.machine
    for vram in VRAM_SIZES if machine.gpus else ():
        larger = with_vram(machine, vram)
        for ram in RAM_SIZES:
            both = with_ram(larger, ram) if larger is not None else None
            if both is not None and (row := _fitting(replace(planning, machine=both), context)):
                return [Way(change=f"{vram} GiB of GPU memory and {ram:,} GiB of RAM", step_seconds=row.step_seconds)]
    return []


def with_ram(machine: Machine, gib: int) -> Machine | None:
    """Returns the machine with `gib` of RAM and unchanged use by others, or None if it already has as much."""
    size = gib << 30
    if size <= machine.ram_total:
        return None
    return replace(machine, ram_total=size, ram_available=size - (machine.ram_total - machine.ram_available))


def with_vram(machine: Machine, gib: int) -> Machine | None:
    """Returns the machine with `gib` of memory on its first GPU, or None if it already has as much."""
    gpu, size = machine.gpus[0], gib << 30
    if gpu.memory_total is not None and size <= gpu.memory_total:
        return None
    taken = gpu.memory_total - gpu.memory_free if gpu.memory_total and gpu.memory_free is not None else 0
    return replace(machine, gpus=(replace(gpu, memory_total=size, memory_free=size - taken), *machine.gpus[1:]))


def with_disk(machine: Machine, gib: int) -> Machine | None:
    """Returns the machine with `gib` of free disk, or None if it already has as much."""
    size = gib << 30
    if size <= machine.disk_free:
        return None
    return replace(machine, disk_free=size, disk_total=max(size, machine.disk_total))


def _had(machine: Machine, label: str) -> str:
    had = {
        "RAM": machine.ram_total,
        "GPU memory": machine.gpus[0].memory_total if machine.gpus else None,
        "free disk": machine.disk_free,
    }[label]
    return f"now {bytes_in_words(had)}"


def _fitting(planning: PlanRequest, context: int) -> TierPlan | None:
    from engine.plan.planner import plan_context

    row = plan_context(planning, context)
    return row if row.fits else None
