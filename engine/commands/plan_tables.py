"""Output of `engine plan` as text: the table of tiers, the arithmetic of one, and the schedule of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine.hardware.machine import Machine
from engine.models.catalogue import ModelSpec
from engine.plan.planner import TierPlan, TierTable, recommended_plan
from engine.plan.request import PlanRequest
from engine.plan.schedule import Addition, Schedule
from engine.plan.search import HEADROOM, Budget
from engine.plan.whole_time import whole_time
from engine.quantities import counted, format_bytes, format_context, format_parameters, format_seconds

if TYPE_CHECKING:
    from rich.console import Console

MEMORY_BASIS = "Predicted, not measured: GPU memory by formula (within 1% of what was measured on an H100 and an H200)"
BY_DATA_SHEET = (
    "time from data-sheet rates times efficiencies that were measured on one H100 and are assumed elsewhere "
    "(`engine profile` measures this machine's)"
)
BY_PROFILE = "time from the rates that `engine profile` measured on this machine"


def print_plan(
    planning: PlanRequest, table: TierTable, tier: int | None, largest: TierPlan | None, *, asked: bool
) -> None:
    """Prints the table, or the arithmetic of one tier, with what the figures rest on."""
    from rich.console import Console

    # Model names come from directories, so disable markup.
    console = Console(markup=False, highlight=False, emoji=False)
    console.print(_headline(planning.machine, planning.spec))
    if tier is None:
        _print_table(console, planning, table)
    else:
        _print_sum(console, table.row(tier), Budget.of(planning.machine))
    if asked:
        text = "no context fits" if largest is None else f"the largest context that fits: {largest.context:,} tokens"
        console.print(text)
    console.print(assumptions(planning.machine), style="dim")


def assumptions(machine: Machine) -> str:
    """Says how memory and time were predicted, in one sentence."""
    if machine.measured is None:
        return f"{MEMORY_BASIS}; {BY_DATA_SHEET}."
    doubt = machine.measured.doubt
    return f"{MEMORY_BASIS}; {BY_PROFILE}{f', when {doubt}' if doubt else ''}."


def _headline(machine: Machine, spec: ModelSpec) -> str:
    gpu = machine.gpus[0] if machine.gpus else None
    card = "no GPU" if gpu is None else f"{gpu.name} ({_bytes(gpu.memory_total)})"
    what = f"{spec.name}, {format_parameters(spec.parameters)} parameters, licence {spec.licence}"
    which = f"a simulated machine with {card}" if machine.simulated else card
    return (
        f"{what}\non {which}, {format_bytes(machine.ram_total)} RAM, {format_bytes(machine.disk_free)} free disk; "
        f"{HEADROOM:.0%} of each stays free"
    )


def _bytes(count: int | None) -> str:
    return "n/a" if count is None else format_bytes(count)


def _print_table(console: Console, planning: PlanRequest, table: TierTable) -> None:
    from rich.table import Table

    grid = Table("tier", "context", "fits", box=None, header_style="bold", pad_edge=False)
    for name in ("GPU", "RAM", "disk", "a step"):
        grid.add_column(name, justify="right", no_wrap=True)
    if planning.repository_tokens is not None:
        grid.add_column("steps", justify="right")
    grid.add_column("one window sees")
    for row in table.tiers:
        mark = "→ " if row.tier == table.recommended else "  "
        cells = [
            f"{mark}{row.tier}",
            format_context(row.context),
            "yes" if row.fits else "no",
            format_bytes(row.gpu_peak_bytes) if planning.on_gpu else "-",
            format_bytes(row.host_peak_bytes),
            format_bytes(row.disk_bytes),
            format_seconds(row.step_seconds),
        ]
        if planning.repository_tokens is not None:
            cells.append(f"{row.steps_per_epoch:,}")
        sees = "the whole repository" if row.holds_repository else row.sees
        style = "bold" if row.tier == table.recommended else "" if row.in_time else "dim"
        grid.add_row(*cells, sees, style=style)
    console.print(grid)
    for row in table.tiers:
        if not row.fits:
            console.print(f"tier {row.tier}: {row.reason}; {row.remedy}", style="dim")
    for row in table.tiers:
        if text := _about_the_disk(row):
            console.print(f"tier {row.tier}: {text}", style="dim")
    slow = [str(row.tier) for row in table.tiers if row.fits and not row.in_time]
    if slow:
        limit = format_seconds(planning.patience)
        console.print(f"not recommended, for one window takes longer than {limit}: tier {', '.join(slow)}", style="dim")
    far = [row for row in table.tiers if row.fits and row.warning]
    if far:
        console.print(f"tier {far[0].tier} and above: {far[0].warning}", style="yellow")
    console.print(tier_verdict(planning, table))


def _about_the_disk(row: TierPlan) -> str:
    """Says what a fitting plan writes to the disk, and the fastest plan that writes nothing; "" where it does not."""
    if not row.fits or not row.written_bytes:
        return ""
    text = f"a step writes {format_bytes(row.written_bytes)} to the disk"
    if row.diskless is None:
        return f"{text}; nothing fits without it"
    dry = row.diskless
    return (
        f"{text}; without it {format_seconds(dry.step_seconds)} instead of {format_seconds(row.step_seconds)}, with "
        f"{format_bytes(dry.host_peak_bytes)} of RAM: {dry.settings}"
    )


def tier_verdict(planning: PlanRequest, table: TierTable) -> str:
    """Says which tier is recommended and why, or that none is."""
    row, why = recommended_plan(planning, table)
    if row is None:
        return "No tier is recommended here. A smaller model, or `--hardware NAME`, shows what would change that."
    where = "" if planning.repository_tokens is None else " where all windows are alike"
    which = (
        f"tier {row.tier}, whose sum `--tier {row.tier}` shows" if row.tier else f"windows of {row.context:,} tokens"
    )
    text = f"Recommended{where}: {which}: {why}."
    if planning.repository_tokens is not None:
        steps = row.steps_per_epoch or 1
        whole = whole_time(planning, row).around(steps * row.step_seconds, steps)
        text += (
            f" The repository is about {planning.repository_tokens:,} tokens: {counted(steps, 'step')} an "
            f"epoch, {format_seconds(whole)} in all, start, scoring and saving included."
        )
    if table.ceiling != table.recommended:
        text += f" `--tier max` takes tier {table.ceiling}, {table.why_ceiling}."
    return text


def print_schedule(schedule: Schedule) -> None:
    """Prints the stages, the time around them, and what each tier adds."""
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False, emoji=False)
    budget = " without a limit of hours" if schedule.hours is None else f" for {format_seconds(3600 * schedule.hours)}"
    epochs = "" if schedule.epochs is None else f", {schedule.epochs:.2g} epochs"
    console.print(
        f"Schedule{budget}: {counted(schedule.updates, 'update')}{epochs}, peak rate {schedule.learning_rate:g}",
        style="bold",
    )
    grid = Table("tier", "windows of", box=None, header_style="bold", pad_edge=False)
    for name in ("updates", "tokens an update", "time"):
        grid.add_column(name, justify="right", no_wrap=True)
    for stage in schedule.stages:
        grid.add_row(
            str(stage.plan.tier or "-"),
            format_context(stage.context),
            f"{stage.updates:,}",
            f"{stage.plan.windows_per_step * stage.context:,}",
            format_seconds(stage.seconds),
        )
    around = schedule.seconds - schedule.step_seconds
    grid.add_row("", "start, scoring, checkpoints, saving", "", "", format_seconds(around))
    grid.add_row("", "in all", "", "", format_seconds(schedule.seconds), style="bold")
    console.print(grid)
    if schedule.additions:
        adds = ", ".join(
            f"{addition.plan.tier} {format_seconds(addition.updates * addition.plan.step_seconds)}"
            f"{'' if addition.taken or addition.beyond_trained else ' (not taken)'}"
            for addition in schedule.additions
        ) + _only_asked(schedule.additions)
        console.print(
            f"{counted(schedule.additions[0].updates, 'update')} on the windows of each tier add: {adds}", style="dim"
        )
    for text in (schedule.note, schedule.longest.warning):
        if text:
            console.print(text, style="yellow")


def _only_asked(additions: Sequence[Addition]) -> str:
    first = next((each.plan.tier for each in additions if each.beyond_trained and not each.taken), None)
    return "" if first is None else f". From tier {first} on beyond the trained length: taken where --tier asks for it"


def _print_sum(console: Console, row: TierPlan, budget: Budget) -> None:
    from rich.table import Table

    verdict = "fits" if row.fits else f"does not fit: {row.reason}; {row.remedy}"
    console.print(f"tier {row.tier}, {row.context:,} tokens: {verdict}", style="bold")
    console.print(", ".join(f"{name} {value}" for name, value in row.layout.as_json().items()))
    grid = Table("where", "part", box=None, header_style="bold", pad_edge=False)
    grid.add_column("size", justify="right", no_wrap=True)
    grid.add_column("how")
    for place, limit in (("gpu", budget.gpu), ("host", budget.host), ("disk", budget.disk)):
        parts = [part for part in row.parts if part.where == place]
        for part in parts:
            grid.add_row(place, part.name, format_bytes(part.bytes), part.formula)
        if parts:
            total = sum(part.bytes for part in parts)
            grid.add_row(
                place, "together", format_bytes(total), f"of {format_bytes(limit)} that can be used", style="bold"
            )
    for line in row.time:
        grid.add_row("time", line.name, format_seconds(line.seconds), line.formula)
    windows = f"{row.windows_per_step} windows" if row.windows_per_step > 1 else "one window"
    grid.add_row("time", "a step", format_seconds(row.step_seconds), windows, style="bold")
    console.print(grid)
    if text := _about_the_disk(row):
        console.print(text)
    moved = f"; it moves {format_bytes(row.weights_moved_bytes)} of weights" if row.weights_moved_bytes else ""
    console.print(f"{row.tokens_per_second:,.0f} tokens a second{moved}")
