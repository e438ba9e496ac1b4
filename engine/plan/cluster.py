"""Plans for several GPUs and hosts: a rank's share, each strategy's memory and its speed-up. No torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from msgspec import structs

from engine.hardware.machine import Gpu, Machine
from engine.plan.planner import TierPlan, plan_context
from engine.plan.request import PlanRequest, workload_of
from engine.plan.sequence import LINK_SHARE, exchange_bytes
from engine.plan.strategy import sharding_refusal, undivided_heads
from engine.quantities import counted, format_bytes, format_timing

NETWORKS = {"1g": 0.125e9, "10g": 1.25e9, "25g": 3.1e9, "100g": 12.5e9, "200g": 25e9, "400g": 50e9}
"""Bytes a second of a network between hosts, in each direction, by name."""
CARD_LINKS = {"nvlink": 300e9, "nvlink-bridge": 50e9}
"""Bytes a second between two GPUs of a host, in each direction; "pcie" follows from the GPU's generation and lanes."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Identical hosts, each with one or more GPUs."""

    machine: Machine
    "One host; its `gpus` are those that train."
    hosts: int = 1
    card_link: float
    "Bytes a second between GPUs of a host."
    host_link: float
    "Bytes a second between hosts."

    @property
    def ranks(self) -> int:
        """Number of processes, one per GPU."""
        return self.hosts * max(1, len(self.machine.gpus))

    @property
    def link(self) -> float:
        """Bytes a second of the slowest link in the ring."""
        return self.card_link if self.hosts == 1 else min(self.card_link, self.host_link)


@dataclass(frozen=True, kw_only=True)
class StrategyPlan:
    """One strategy for the ranks of a cluster to share an update."""

    strategy: str
    ranks: int
    context: int
    windows: int
    "Windows of one update."
    fits: bool
    reason: str
    gpu_peak_bytes: int
    "Peak of the rank that needs most."
    host_peak_bytes: int
    "Peak of one host, over all its ranks."
    seconds: float
    "Seconds per update."
    speed_up: float | None
    "Relative to the same update on the first GPU alone; None where that does not fit."
    sent_bytes: float
    "Bytes that a rank sends per update."
    words: str
    "Derivation of the time."


def least_of(machines: Sequence[Machine]) -> Machine:
    """Returns the minimum of these machines' resources: one layout has to fit every rank.

    Args:
        machines: One for each rank, with the rank's own GPU first, or without a GPU.
    """
    first = machines[0]
    cards = [machine.gpus[0] for machine in machines if machine.gpus]
    gpus = first.gpus
    if len(cards) == len(machines) > 1:
        gpus = (min(cards, key=lambda gpu: (gpu.has_bf16, _free_bytes(gpu))),)
    same = not gpus or gpus[0].name == first.gpus[0].name
    return replace(
        first,
        gpus=gpus,
        ram_total=min(machine.ram_total for machine in machines),
        ram_available=min(machine.ram_available for machine in machines),
        disk_free=min(machine.disk_free for machine in machines),
        cpu_cores=min(machine.cpu_cores for machine in machines),
        measured=first.measured if same else None,
    )


def _free_bytes(gpu: Gpu) -> float:
    known = [size for size in (gpu.memory_free, gpu.memory_total) if size is not None]
    return min(known, default=math.inf)


def share_of(machine: Machine, ranks: int, card: int = 0) -> Machine:
    """Returns the share of a host that one of its ranks may use: its GPU, and its part of everything else."""
    gpus = machine.gpus[card : card + 1] if machine.gpus else ()
    return replace(
        machine,
        gpus=gpus,
        ram_total=machine.ram_total // ranks,
        ram_available=machine.ram_available // ranks,
        disk_free=machine.disk_free // ranks,
        cpu_cores=max(1, machine.cpu_cores // ranks),
    )


def card_link(name: str, gpu: Gpu | None) -> float:
    """Returns bytes a second between two GPUs of a host.

    Args:
        name: A key of CARD_LINKS, "pcie", or a number of GB/s.
        gpu: One of the GPUs.

    Raises:
        ValueError: `name` is none of these.
    """
    if name in CARD_LINKS:
        return CARD_LINKS[name]
    if name == "pcie":
        generation, lanes = (gpu.pcie_generation or 3, gpu.pcie_lanes or 8) if gpu else (3, 8)
        return 0.985e9 * float(2 ** (generation - 3)) * lanes
    return _gigabytes(name)


def host_link(name: str) -> float:
    """Returns bytes a second between hosts; `name` is a key of NETWORKS, or a number of GB/s.

    Raises:
        ValueError: `name` is neither.
    """
    return NETWORKS[name] if name in NETWORKS else _gigabytes(name)


def _gigabytes(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(text)
    return value * 1e9


def cluster_plans(planning: PlanRequest, cluster: Cluster, context: int) -> list[StrategyPlan]:
    """Plans every strategy for windows of `context` tokens, the fastest that fits first.

    Args:
        planning: Model, precision and settings; its machine is replaced by a rank's share.
        cluster: The hosts and their GPUs.
        context: Tokens per window.
    """
    alone = _of_card(planning, cluster, 0, 1, "data")
    one = plan_context(alone, context)
    reference = one.step_seconds if one.fits else None
    found = list(_strategies(planning, cluster, context, reference))
    return sorted(found, key=lambda plan: (not plan.fits, plan.seconds))


def _of_card(planning: PlanRequest, cluster: Cluster, card: int, ranks: int, strategy: str) -> PlanRequest:
    cards = max(1, len(cluster.machine.gpus))
    return dataclasses.replace(
        planning,
        machine=share_of(cluster.machine, cards if ranks > 1 else 1, card),
        ranks=ranks,
        distributed=structs.replace(planning.distributed, strategy=strategy),
        rank_link=cluster.link,
    )


def _slowest(planning: PlanRequest, cluster: Cluster, context: int, strategy: str) -> TierPlan:
    """Returns the plan of the slowest GPU, which the others wait for."""
    cards = max(1, len(cluster.machine.gpus))
    distinct: list[int] = []
    for card in range(cards):
        gpus = cluster.machine.gpus
        if not gpus or all(replace(gpus[card], index=0) != replace(gpus[one], index=0) for one in distinct):
            distinct.append(card)
    rows = [plan_context(_of_card(planning, cluster, card, cluster.ranks, strategy), context) for card in distinct]
    return max(rows, key=lambda row: (not row.fits, row.step_seconds))


def _strategies(
    planning: PlanRequest, cluster: Cluster, context: int, reference: float | None
) -> Iterator[StrategyPlan]:
    ranks, rate = cluster.ranks, cluster.link * LINK_SHARE
    spec = planning.spec
    gradients = 4.0 * (planning.adapter_parameters if planning.trains_adapter else spec.parameters)
    sum_bytes = 2 * (ranks - 1) / ranks * gradients
    windows = planning.windows_per_update(context)

    def made(
        strategy: str, row: TierPlan, seconds: float, sent: float, words: str, gpu: int | None = None
    ) -> StrategyPlan:
        per_host = max(1, len(cluster.machine.gpus))
        return StrategyPlan(
            strategy=strategy,
            ranks=ranks,
            context=context,
            windows=windows,
            fits=row.fits,
            reason=row.reason if not row.fits else "",
            gpu_peak_bytes=row.gpu_peak_bytes if gpu is None else gpu,
            host_peak_bytes=row.host_peak_bytes * per_host,
            seconds=seconds,
            speed_up=None if reference is None else reference / seconds,
            sent_bytes=sent,
            words=words,
        )

    row = _slowest(planning, cluster, context, "data")
    turns = math.ceil(windows / ranks)
    words = f"{turns} of {counted(windows, 'window')} a rank, then {format_bytes(sum_bytes)} of gradients"
    yield made("data", row, row.step_seconds + sum_bytes / rate, sum_bytes, words)
    for strategy in () if sharding_refusal(spec) else ("ring", "ulysses"):
        if strategy == "ulysses" and undivided_heads(spec, ranks):
            continue
        row = _slowest(planning, cluster, context, strategy)
        waited = next((p.seconds for p in row.time if p.name.startswith("waiting for other ranks")), 0.0)
        words = f"{counted(windows, 'window')} by all ranks together, {format_timing(waited)} a window waiting "
        words += "for keys and values"
        beside, between = exchange_bytes(workload_of(_of_card(planning, cluster, 0, ranks, strategy), context))
        sent = sum_bytes + windows * (beside + between)
        yield made(strategy, row, row.step_seconds + sum_bytes / rate, sent, words)
    if planning.trains_adapter and spec.parameters and ranks > 1:
        yield _zero3(planning, cluster, context, made, turns, rate)


def _zero3(
    planning: PlanRequest,
    cluster: Cluster,
    context: int,
    made: Callable[..., StrategyPlan],
    turns: int,
    rate: float,
) -> StrategyPlan:
    """Plans whole windows; each layer's weights are gathered before its forward, its recompute and its backward."""
    whole = dataclasses.replace(planning.stepping("whole"), weights=("resident",))
    row = _slowest(whole, cluster, context, "data")
    element = 4 if planning.compute_type == "fp32" else 2
    weights = element * planning.spec.parameters
    kept = weights // cluster.ranks + 2 * element * planning.spec.layer_parameters
    peak = row.gpu_peak_bytes - weights + kept
    sent = 3 * turns * weights * (cluster.ranks - 1) / cluster.ranks
    words = f"{format_bytes(kept)} of weights a rank; {format_bytes(sent)} of them gathered in an update"
    gpu = share_of(cluster.machine, 1).gpus
    limit = 0.88 * (gpu[0].memory_total or 0) if gpu else math.inf
    fits = peak <= limit
    reason = "" if fits else f"{format_bytes(peak)} of GPU memory a rank"
    seconds = max(row.step_seconds, sent / rate)
    return replace(made("zero3", row, seconds, sent, words, gpu=peak), fits=fits, reason=reason)
