"""`engine plan`: prints the context tiers that a machine can train, with the arithmetic."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Literal

from msgspec import structs

from engine import config
from engine.commands.admission import admit_model
from engine.commands.cluster_table import describe_cluster, print_cluster
from engine.commands.option_values import gib_in_bytes, number, whole_number
from engine.commands.output import print_json
from engine.commands.run_options import add_stream_option, read_stream_options
from engine.errors import DOES_NOT_FIT
from engine.hardware.machine import Machine
from engine.hardware.target import target_machine
from engine.models.catalogue import ModelSpec, catalogue, find_model
from engine.plan.cluster import CARD_LINKS, NETWORKS, Cluster, StrategyPlan, card_link, cluster_plans, host_link
from engine.plan.planner import TierPlan, TierTable, largest_context, recommended_plan, tier_table
from engine.plan.recommendation import HIGHEST
from engine.plan.request import PlanRequest
from engine.plan.schedule import Addition, Schedule, make_schedule
from engine.plan.search import HEADROOM, Budget
from engine.plan.tiers import tiers
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


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:  # noqa: ARG001
    """Adds the options of `engine plan`."""
    model = config.field_spec("model.name")
    parser.add_argument(
        "--model",
        default=model.default,
        metavar="M",
        help=f"One of {', '.join(catalogue())}; a hub id; or a local directory (default: {model.default}).",
    )
    parser.add_argument(
        "--repo", action="append", default=[], metavar="DIR", help="Repository whose size limits the recommended tier."
    )
    parser.add_argument(
        "--hardware", default="auto", metavar="NAME", help="auto is this machine; or a card such as rtx-4090."
    )
    parser.add_argument("--vram", type=gib_in_bytes, metavar="GIB", help="GPU memory, instead of what the card has.")
    parser.add_argument("--ram", type=gib_in_bytes, metavar="GIB", help="RAM; 64 for a named card.")
    parser.add_argument("--disk", type=gib_in_bytes, metavar="GIB", help="Free disk; 500 for a named card.")
    precision = config.field_spec("model.precision")
    parser.add_argument("--precision", choices=precision.choices, default="auto", help=precision.description)
    rank = config.field_spec("lora.rank")
    parser.add_argument("--rank", type=whole_number(1, 1024), default=rank.default, metavar="R", help=rank.description)
    parser.add_argument("--targets", nargs="+", metavar="NAME", help=config.field_spec("lora.targets").description)
    method = config.field_spec("training.method")
    parser.add_argument("--method", choices=method.choices, default=method.default, help=method.description)
    add_stream_option(parser)
    parser.add_argument(
        "--hosts", type=whole_number(1, 4096), default=1, metavar="N", help="Machines like this one (default: 1)."
    )
    parser.add_argument(
        "--card-link",
        type=_card_link,
        default="pcie",
        metavar="LINK",
        help="Between the cards of a machine: pcie, nvlink, nvlink-bridge, or GB/s each way (default: pcie).",
    )
    parser.add_argument(
        "--network",
        type=_host_link,
        default="10g",
        metavar="LINK",
        help=f"Between machines: {', '.join(NETWORKS)}, or GB/s each way (default: 10g).",
    )
    parser.add_argument(
        "--windows",
        type=whole_number(1, 4096),
        default=None,
        metavar="N",
        help="Windows of an update, for the table of several cards.",
    )
    parser.add_argument(
        "--tier",
        type=_tier,
        metavar="N",
        help="Show one tier's whole sum; with --hours, the last tier of the schedule.",
    )
    parser.add_argument(
        "--hours", type=number(above=0, most=10_000), metavar="H", help=config.field_spec("training.hours").description
    )
    parser.add_argument("--max-context", action="store_true", help="Also find the largest context that fits.")
    parser.add_argument("--json", action="store_true", help="One JSON document on standard output.")


def _tier(text: str) -> int | Literal["max"]:
    if text == "max":
        return "max"
    try:
        return whole_number(1, len(tiers()))(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, or max") from error


def _card_link(text: str) -> str:
    return _link(text, lambda name: card_link(name, None), ("pcie", *CARD_LINKS))


def _host_link(text: str) -> str:
    return _link(text, host_link, NETWORKS)


def _link(text: str, speed: Callable[[str], float], names: Iterable[str]) -> str:
    try:
        speed(text)
    except ValueError as error:
        known = f"{', '.join(names)}, or GB/s each way above 0"
        raise argparse.ArgumentTypeError(f"{text} is not one of {known}") from error
    return text


def run(args: argparse.Namespace) -> int:
    """Prints the tier table, or one tier's ledger."""
    machine = target_machine(args.hardware, vram=args.vram, ram=args.ram, disk=args.disk)
    admit_model(args.model)
    spec = find_model(args.model)
    planning = PlanRequest.of(
        machine,
        spec,
        args.precision,
        lora=config.LoraSection(rank=args.rank, targets=args.targets or config.LoraSection().targets),
        training=config.TrainingSection(method=args.method),
        stream=read_stream_options(args),
        repository_tokens=_repository_tokens(args.repo),
    )
    table = tier_table(planning)
    schedule = _schedule(planning, table, args)
    tier = table.ceiling if args.tier == "max" else args.tier
    largest = largest_context(planning) if args.max_context else None
    cluster = _cluster(args, machine)
    plans = [] if cluster is None else _strategies(args, planning, cluster, table, tier)
    if args.json:
        document = describe(planning, table, largest, asked=args.max_context)
        if schedule is not None:
            document["schedule"] = schedule.as_json()
        if cluster is not None:
            document["cluster"] = describe_cluster(cluster, plans)
        print_json(document)
        return 0
    _print_plan(planning, table, None if args.hours else tier, largest, asked=args.max_context)
    if schedule is not None:
        print_schedule(schedule)
    else:
        print(f"Peak learning rate {planning.learning_rate:g}.")  # noqa: T201
    if cluster is not None:
        from rich.console import Console

        print_cluster(Console(markup=False, highlight=False, emoji=False), cluster, plans)
    if tier is not None and not table.row(tier).fits:
        return DOES_NOT_FIT
    return 0


def _schedule(planning: PlanRequest, table: TierTable, args: argparse.Namespace) -> Schedule | None:
    """Makes the schedule of a run with these options; None where its windows are all alike."""
    if args.hours is not None:
        return make_schedule(planning, args.hours, args.tier)
    alike = args.tier is not None or planning.train_tokens is None or recommended_plan(planning, table)[0] is None
    return None if alike else make_schedule(planning, None)


def _cluster(args: argparse.Namespace, machine: Machine) -> Cluster | None:
    if len(machine.gpus) < 2 and args.hosts == 1:
        return None
    first = machine.gpus[0] if machine.gpus else None
    return Cluster(
        machine=machine,
        hosts=args.hosts,
        card_link=card_link(args.card_link, first),
        host_link=host_link(args.network),
    )


def _strategies(
    args: argparse.Namespace, planning: PlanRequest, cluster: Cluster, table: TierTable, tier: int | None
) -> list[StrategyPlan]:
    """Plans the strategies of the tier in the options, else of the windows recommended on one GPU, else of tier 1."""
    best = None if tier else recommended_plan(planning, table)[0]
    context = best.context if best else table.row(tier or 1).context
    if args.windows is not None:
        training = structs.replace(planning.training, tokens_per_update=args.windows * context)
        planning = replace(planning, training=training)
    return cluster_plans(planning, cluster, context)


def _repository_tokens(repositories: list[str]) -> int | None:
    if not repositories:
        return None
    from engine.data.repositories import estimate_data_tokens

    return estimate_data_tokens(config.DataSection(repositories=repositories))


# --- JSON --------------------------------------------------------------------------------------------------


def describe(planning: PlanRequest, table: TierTable, largest: TierPlan | None, *, asked: bool) -> dict[str, Any]:
    """Builds the document of `engine plan --json`. Bytes and seconds; null is unknown."""
    spec = planning.spec
    best, why = recommended_plan(planning, table)
    document = {
        "hardware": _describe_machine(planning.machine),
        "model": {
            "name": spec.name,
            "hub_id": spec.hub_id,
            "family": spec.family,
            "licence": spec.licence,
            "parameters": spec.parameters,
            "trainable": planning.adapter_parameters if planning.trains_adapter else spec.parameters,
        },
        "repo_tokens": planning.repository_tokens,
        "learning_rate": planning.learning_rate,
        "recommended": table.recommended,
        "recommended_context": best.context if best else None,
        "recommended_because": why,
        "ceiling": table.ceiling,
        "tiers": [row.as_json() for row in table.tiers],
        "assumptions": _assumptions(planning.machine),
    }
    if asked:
        document["max_context"] = largest.as_json() if largest else None
    return document


def _describe_machine(machine: Machine) -> dict[str, Any]:
    budget = Budget.of(machine)
    gpu = machine.gpus[0] if machine.gpus else None
    return {
        "name": machine.simulated or (gpu.name if gpu else machine.cpu_name),
        "simulated": machine.simulated is not None,
        "gpu": asdict(gpu) if gpu else None,
        "cpu_cores": machine.cpu_cores,
        "ram_bytes": machine.ram_total,
        "disk_free_bytes": machine.disk_free,
        "usable": {"gpu": budget.gpu, "host": budget.host, "disk": budget.disk},
    }


# --- text output -------------------------------------------------------------------------------------------


def _print_plan(
    planning: PlanRequest, table: TierTable, tier: int | None, largest: TierPlan | None, *, asked: bool
) -> None:
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
    console.print(_assumptions(planning.machine), style="dim")


def _assumptions(machine: Machine) -> str:
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
    console.print(_verdict(planning, table))


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


def _verdict(planning: PlanRequest, table: TierTable) -> str:
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
        text += f" `--tier max` takes tier {table.ceiling}, {HIGHEST}."
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
