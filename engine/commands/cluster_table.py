"""Output of `engine plan` for several GPUs: a table of strategies, and the commands that start them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from engine.config.hosts import Host, deepspeed_command, join_command
from engine.plan.cluster import Cluster, StrategyPlan
from engine.quantities import format_bytes, format_context, format_seconds

if TYPE_CHECKING:
    from rich.console import Console


def describe_cluster(cluster: Cluster, plans: list[StrategyPlan]) -> dict[str, Any]:
    """Returns the part of `engine plan --json` on several GPUs. Bytes, bytes a second, seconds."""
    return {
        "hosts": cluster.hosts,
        "ranks": cluster.ranks,
        "cards": [gpu.name for gpu in cluster.machine.gpus],
        "card_link": cluster.card_link,
        "host_link": cluster.host_link if cluster.hosts > 1 else None,
        "strategies": [dataclasses.asdict(plan) for plan in plans],
        "commands": commands(cluster),
    }


def commands(cluster: Cluster, run: str = "out/runs/RUN") -> list[str]:
    """Returns the commands that start a run, here and on each of the other hosts."""
    cards = max(1, len(cluster.machine.gpus))
    if cluster.hosts == 1:
        return [f"engine train --gpus {cards} ..."]
    hosts = [Host(f"host{number}", cards) for number in range(cluster.hosts)]
    first = f"engine train --gpus {cards} --set distributed.hostfile=hosts.txt ..."
    others = [join_command(hosts, number, 29500, run, "python") for number in range(1, cluster.hosts)]
    return [first, *others, deepspeed_command("hosts.txt", "run.yaml", 29500)]


def print_cluster(console: Console, cluster: Cluster, plans: list[StrategyPlan]) -> None:
    """Prints the table, best first, and the commands."""
    from rich.table import Table

    names = [gpu.name for gpu in cluster.machine.gpus]
    cards = ", ".join(f"{names.count(name)} × {name}" for name in dict.fromkeys(names))
    hosts = "" if cluster.hosts == 1 else f" on each of {cluster.hosts} hosts"
    links = f"{cluster.card_link / 1e9:,.3g} GB/s between cards"
    links += "" if cluster.hosts == 1 else f", {cluster.host_link / 1e9:,.3g} GB/s between hosts"
    first = plans[0]
    console.print(
        f"\n{cards}{hosts}, {links}; an update of {first.windows} × {format_context(first.context)} tokens (predicted):"
    )
    grid = Table("strategy", "fits", box=None, header_style="bold", pad_edge=False)
    for name in ("GPU a rank", "RAM a host", "an update", "speed-up", "sent a rank"):
        grid.add_column(name, justify="right", no_wrap=True)
    grid.add_column("how")
    for plan in plans:
        grid.add_row(
            plan.strategy,
            "yes" if plan.fits else "no",
            format_bytes(plan.gpu_peak_bytes),
            format_bytes(plan.host_peak_bytes),
            format_seconds(plan.seconds),
            "-" if plan.speed_up is None else f"{plan.speed_up:.2f} ×",
            format_bytes(plan.sent_bytes),
            plan.reason or plan.words,
        )
    console.print(grid)
    console.print("Every rank waits for the slowest card." if len(set(names)) > 1 else "", end="\n")
    for command in commands(cluster):
        console.print(f"  {command}", soft_wrap=True)
