"""Searches step layouts for the fastest that fits a machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from types import MappingProxyType
from typing import Any, Literal

from engine.hardware.machine import Machine
from engine.plan.ledger_lines import Place, stored_bytes
from engine.plan.memory import Ledger, streamed_ledger, whole_sequence_ledger
from engine.plan.scoring import scoring_part
from engine.plan.speeds import Speeds, speeds_of
from engine.plan.step_layout import StepLayout
from engine.plan.stream_plan import BaseWeights, StreamPlan, in_4_bits, streams
from engine.plan.time import TimePart, moved_by, streamed_time, total_seconds, whole_sequence_time
from engine.plan.window_ring import layers_of_ring
from engine.plan.workload import Workload

HEADROOM = 0.12
"Share of the GPU's memory, of RAM and of the free disk that a plan leaves free."

# Minimum speed-up for which a plan is preferred despite its other costs.
STREAMED_STEP = 1.1
"The ordinary path has fewer moving parts; measured tiles are at least as fast as predicted (docs/benchmarks.md)."
FOUR_BIT_WEIGHTS = 1.05
"4-bit weights approximate the model's own."
STREAMED_WEIGHTS = 1.1
DISK_HOME = 1.5
"Each step writes all hidden states to disk, which wears solid-state disks."

_GRAINS = ((16384, 65536, 2048), (8192, 65536, 1024), (4096, 32768, 1024), (2048, 32768, 512), (1024, 16384, 256))
"Tile, key block and loss chunk, coarsest (fastest) first."
_CHECKPOINT_EVERY = (1, 2, 4, 8)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Bytes that a plan may use in each place, after headroom and other processes."""

    gpu: int
    host: int
    disk: int

    @staticmethod
    def of(machine: Machine) -> Budget:
        """Returns the budget of a machine's first GPU (0 without one), RAM and disk."""
        gpu = machine.gpus[0] if machine.gpus else None
        total = gpu.memory_total if gpu else None
        free = gpu.memory_free if gpu else None
        return Budget(
            gpu=_left(total, total if free is None else free) if total else 0,
            host=_left(machine.ram_total, machine.ram_available),
            disk=round((1 - HEADROOM) * machine.disk_free),
        )

    def limit(self, where: Place) -> int:
        """Returns the bytes of one place."""
        return {"gpu": self.gpu, "host": self.host, "disk": self.disk}[where]


def _left(total: int, free: int) -> int:
    return max(0, round((1 - HEADROOM) * total) - max(0, total - free))


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One step layout with its ledger and its time."""

    layout: StepLayout
    ledger: Ledger
    work: Workload
    speeds: Speeds
    shortages: tuple[tuple[Place, int], ...]
    "Bytes missing in each place that is too small."

    @property
    def fits(self) -> bool:
        """Whether every place has room, headroom included."""
        return not self.shortages

    @cached_property
    def time(self) -> tuple[TimePart, ...]:
        """Time model of one window."""
        layout = self.layout
        if layout.stream is None:
            parts = whole_sequence_time(self.work, layout.weights, self.speeds, recompute=layout.recompute)
        else:
            parts = streamed_time(self.work, layout.stream, self.speeds)
        return (*parts, scoring_part(parts, layout)) if self.work.scored else parts

    @cached_property
    def seconds(self) -> float:
        """Seconds of one window."""
        return total_seconds(self.time)

    @property
    def moved_bytes(self) -> int:
        """Bytes that one window moves between the GPU and the homes of its data; 0 for whole windows."""
        stream = self.layout.stream
        return 0 if stream is None else moved_by(self.work, stream).total

    @property
    def score(self) -> float:
        """Seconds, weighted by the plan's other costs: the lowest is preferred."""
        weights = self.layout.weights
        score = self.seconds * (FOUR_BIT_WEIGHTS if in_4_bits(weights) else 1.0)
        score *= STREAMED_WEIGHTS if streams(weights) else 1.0
        if (stream := self.layout.stream) is not None:
            score *= STREAMED_STEP * (DISK_HOME if stream.hidden_home == "disk" else 1.0)
        return score

    def short_of(self, where: Place) -> int:
        """Returns the bytes missing in one place."""
        return dict(self.shortages).get(where, 0)


Way = Literal["auto", "whole", "streamed"]
"""How to compute a step: whole windows, tile by tile, or the faster of those that fit."""


Recompute = Literal["auto", "always", "never"]
"""Whether whole windows recompute each layer in the backward pass; auto takes the faster of those that fit."""


def search(
    work: Workload,
    machine: Machine,
    budget: Budget,
    weights: tuple[BaseWeights, ...],
    way: Way = "auto",
    recompute: Recompute = "auto",
    fixed: Mapping[str, Any] = MappingProxyType({}),
) -> list[Candidate]:
    """Returns all candidates that are worth comparing, including those that do not fit.

    `weights` are the storages of the base weights that the configured precision allows. `fixed` holds the fields of
    streamed plans that are not searched.
    """
    again = {"auto": (True, False), "always": (True,), "never": (False,)}[recompute]
    speeds = speeds_of(machine, work)
    found: list[Candidate] = []
    if way != "streamed":
        # Whole windows need all weights at once, so streamed weights alone allow no such plan.
        found += [
            _whole_sequence(work, storage, speeds, budget, recompute=each)
            for storage in weights
            if not streams(storage)
            for each in again
        ]
    if way != "whole" or not found:
        for storage in weights:
            found += _streamed(work, storage, speeds, budget, fixed)
    return found


def _whole_sequence(
    work: Workload, weights: BaseWeights, speeds: Speeds, budget: Budget, *, recompute: bool
) -> Candidate:
    ledger = whole_sequence_ledger(work, weights, recompute=recompute)
    return _candidate(_layout(work, weights, recompute=recompute), ledger, work, speeds, budget)


def _streamed(
    work: Workload, weights: BaseWeights, speeds: Speeds, budget: Budget, fixed: Mapping[str, Any]
) -> Iterator[Candidate]:
    grains: dict[tuple[object, ...], tuple[int, int, int]] = {}
    for plan in _plans(work, weights, budget, fixed):
        # Except for a home on the device, the home hardly changes which grain fits, so one grain serves these plans.
        on_device = not work.on_gpu or plan.hidden_home == "gpu"
        key = (plan.kv_home, plan.hidden_home == "disk", plan.weights_home, on_device and plan)
        known = None
        if key not in grains:
            grains[key], known = _fit_grain(work, plan, budget, _grains(fixed))
        grained = _with_grain(plan, grains[key])
        if plan.kv_home == "host" and "kv_home" not in fixed and _all_in_rings(work, grained):
            continue  # every layer is in a ring: nothing to offload; equals the plan with the device as home
        for each in (grained, _keeping_layers(work, grained, budget)):
            if each is not None:
                layout = _layout(work, weights, stream=each)
                ledger = known if known is not None and each is grained else streamed_ledger(work, each)
                yield _candidate(layout, ledger, work, speeds, budget)


def _all_in_rings(work: Workload, plan: StreamPlan) -> bool:
    return layers_of_ring(work.spec, plan.tile, work.context)[0] == work.spec.layers


def _keeping_layers(work: Workload, plan: StreamPlan, budget: Budget) -> StreamPlan | None:
    """Returns a single tile's plan with as many layers kept as the GPU has room for; None if it has room for none."""
    if not work.on_gpu or work.context > plan.tile or plan.streams_weights or plan.checkpoint_every > 1:
        return None
    fit, least_unfit = 0, work.spec.layers + 1
    while least_unfit - fit > 1:  # memory rises with each layer kept
        layers = (fit + least_unfit) // 2
        keeping = streamed_ledger(work, replace(plan, keep_layers=layers))
        fit, least_unfit = (layers, least_unfit) if keeping.peak("gpu") <= budget.gpu else (fit, layers)
    return replace(plan, keep_layers=fit) if fit else None


def _plans(work: Workload, weights: BaseWeights, budget: Budget, fixed: Mapping[str, Any]) -> Iterator[StreamPlan]:
    stashes = (fixed["stash"],) if "stash" in fixed else (True, False)
    homes = product(_weight_homes(work, weights, budget, fixed), _homes(fixed, on_gpu=work.on_gpu))
    for weights_home, (kv_home, hidden_home) in homes:
        steps = _CHECKPOINT_EVERY if hidden_home != "gpu" else (1,)
        for every in (fixed["checkpoint_every"],) if "checkpoint_every" in fixed else steps:
            if every > work.spec.layers and "checkpoint_every" not in fixed:
                continue
            for stash in stashes:
                yield StreamPlan(
                    weights=weights,
                    weights_home=weights_home,
                    kv_home=kv_home,
                    hidden_home=hidden_home,
                    checkpoint_every=min(every, work.spec.layers),
                    stash=stash,
                    activation_bits=work.activation_bits,
                    attention=fixed.get("attention", "auto"),
                )


def _weight_homes(
    work: Workload, weights: BaseWeights, budget: Budget, fixed: Mapping[str, Any]
) -> tuple[Literal["host", "disk"], ...]:
    """Homes of streamed 4-bit weights; the disk is tried where they would take half of the RAM or more.

    Of a model with experts no 4-bit copy is kept that could be mapped (engine.models.four_bit_folder).
    """
    if weights != "nf4-streamed" or work.spec.sparse_layers:
        return ("host",)
    if "weights_home" in fixed:
        return (fixed["weights_home"],)
    return ("host", "disk") if 2 * stored_bytes(work, weights) > budget.host else ("host",)


def _homes(fixed: Mapping[str, Any], *, on_gpu: bool) -> list[tuple[Any, Any]]:
    """Homes of keys and values, and of hidden states, cheapest first."""
    homes: tuple[tuple[Any, Any], ...] = (("gpu", "host"), ("gpu", "disk"))
    if on_gpu:
        homes = (("gpu", "gpu"), *homes, ("host", "host"), ("host", "disk"))
    # A fixed home need not be in the list: on a CPU, the "gpu" home is host memory as well.
    wanted = dict.fromkeys((fixed.get("kv_home", kv), fixed.get("hidden_home", hidden)) for kv, hidden in homes)
    return [home for home in wanted if home != ("host", "gpu")]


def _grains(fixed: Mapping[str, Any]) -> list[tuple[int, int, int]]:
    """Tile, key block and loss chunk, coarsest first."""
    grains = []
    for usual_tile, usual_block, loss_piece in _GRAINS:
        tile = fixed.get("tile", min(usual_tile, fixed.get("key_block", usual_tile)))
        key_block = fixed.get("key_block", max(usual_block, tile))
        grains.append((tile, key_block, fixed.get("loss_piece", loss_piece)))
    return list(dict.fromkeys(grains))


def _fit_grain(
    work: Workload, plan: StreamPlan, budget: Budget, grains: list[tuple[int, int, int]]
) -> tuple[tuple[int, int, int], Ledger]:
    """Returns the coarsest grain with which the plan fits the device, or the finest if none does; and its ledger.

    With a disk home, tiles are staged in host memory, so they must fit there as well.
    """
    places: list[Place] = ["gpu" if work.on_gpu else "host"]
    if plan.hidden_home == "disk":
        places.append("host")
    for tile, key_block, loss_piece in grains:
        if tile > work.context and tile != grains[-1][0]:
            continue
        grain = min(tile, work.context), min(key_block, work.context), loss_piece
        ledger = streamed_ledger(work, _with_grain(plan, grain))
        if all(ledger.peak(where) <= budget.limit(where) for where in places):
            break
    return grain, ledger


def _with_grain(plan: StreamPlan, grain: tuple[int, int, int]) -> StreamPlan:
    tile, key_block, loss_piece = grain
    return replace(plan, tile=tile, key_block=key_block, loss_piece=loss_piece)


def _layout(
    work: Workload, weights: BaseWeights, *, stream: StreamPlan | None = None, recompute: bool = False
) -> StepLayout:
    return StepLayout(
        stream=stream,
        recompute=recompute,
        precision="nf4" if in_4_bits(weights) else work.compute_type,
        master_home=work.master_home,
        window_ranks=work.ranks,
    )


def _candidate(layout: StepLayout, ledger: Ledger, work: Workload, speeds: Speeds, budget: Budget) -> Candidate:
    places: tuple[Place, ...] = ("gpu", "host", "disk")
    missing = [(where, ledger.peak(where) - budget.limit(where)) for where in places]
    return Candidate(
        layout=layout,
        ledger=ledger,
        work=work,
        speeds=speeds,
        shortages=tuple((where, short) for where, short in missing if short > 0),
    )
