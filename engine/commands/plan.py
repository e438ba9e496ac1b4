"""`engine plan`: prints the context tiers that a machine can train, with the arithmetic."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from typing import Any, Literal

from msgspec import structs

from engine import config
from engine.commands.admission import admit_model
from engine.commands.cluster_table import describe_cluster, print_cluster
from engine.commands.option_values import gib_in_bytes, number, whole_number
from engine.commands.output import print_json
from engine.commands.plan_tables import assumptions, print_plan, print_schedule
from engine.commands.run_options import add_stream_option, read_stream_options
from engine.errors import DOES_NOT_FIT
from engine.hardware.machine import Machine
from engine.hardware.target import target_machine
from engine.models.catalogue import catalogue, find_model
from engine.plan.cluster import CARD_LINKS, NETWORKS, Cluster, StrategyPlan, card_link, cluster_plans, host_link
from engine.plan.planner import TierPlan, TierTable, largest_context, recommended_plan, tier_table
from engine.plan.request import PlanRequest
from engine.plan.schedule import Schedule, make_schedule
from engine.plan.search import Budget
from engine.plan.tiers import tiers


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
    print_plan(planning, table, None if args.hours else tier, largest, asked=args.max_context)
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
        return make_schedule(planning, args.hours, args.tier, table=table)
    alike = args.tier is not None or planning.train_tokens is None or recommended_plan(planning, table)[0] is None
    return None if alike else make_schedule(planning, None, table=table)


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
        "assumptions": assumptions(planning.machine),
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
