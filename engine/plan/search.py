"""Searches step layouts for the fastest that fits a machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal

from engine.hardware.machine import Machine
from engine.plan.home_lines import home_parts
from engine.plan.homes import Grain, Homes, all_homes
from engine.plan.ledger_lines import Line, Place
from engine.plan.memory import (
    Ledger,
    bytes_of_any_tile,
    key_value_bytes,
    streamed_ledger,
    whole_sequence_ledger,
)
from engine.plan.recurrent import border_state_parts
from engine.plan.scoring import scoring_part
from engine.plan.speeds import Speeds, speeds_of
from engine.plan.step_layout import StepLayout
from engine.plan.stream_plan import BaseWeights, Home, StreamPlan, in_4_bits, streams
from engine.plan.time import TimePart, streamed_time, total_seconds, whole_sequence_time
from engine.plan.transfers import moved_by, written_by
from engine.plan.weight_lines import AT_HOME, LOADING, QUANTISING, READ_AHEAD
from engine.plan.window_ring import layers_of_ring
from engine.plan.workload import Workload

HEADROOM = 0.12
"Share of the GPU's memory, of RAM and of the free disk that a plan leaves free."

# Least speed-ups for which one storage of the base weights is preferred to another.
FOUR_BIT_WEIGHTS = 1.05
"4-bit weights approximate the model's own."
STREAMED_WEIGHTS = 1.1
"Of weights in 16 bits that are streamed from the host over 4-bit ones; they fill the RAM."
WORN_DISK = 1.01
"Times the fastest plan that another may take which writes less to the disk: a step may write hundreds of GB."

_GRAINS = ((16384, 65536, 2048), (8192, 65536, 1024), (4096, 32768, 1024), (2048, 32768, 512), (1024, 16384, 256))
"Coarsest (fastest) first."


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
    work: Workload
    speeds: Speeds
    budget: Budget
    too_large: bool = False
    "Whether what waits between the passes alone is known to leave no room, so that no ledger is needed to see it."

    @cached_property
    def ledger(self) -> Ledger:
        """Ledger of one step."""
        stream = self.layout.stream
        if stream is None:
            return whole_sequence_ledger(self.work, self.layout.weights, recompute=self.layout.recompute)
        return streamed_ledger(self.work, stream)

    @cached_property
    def shortages(self) -> tuple[tuple[Place, int], ...]:
        """Bytes missing in each place that is too small."""
        places: tuple[Place, ...] = ("gpu", "host", "disk")
        missing = [(where, self.ledger.peak(where) - self.budget.limit(where)) for where in places]
        return tuple((where, short) for where, short in missing if short > 0)

    @cached_property
    def fits(self) -> bool:
        """Whether every place has room, headroom included."""
        return not self.too_large and not self.shortages

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
    def written_bytes(self) -> int:
        """Bytes that one window writes to the disk."""
        stream = self.layout.stream
        return 0 if stream is None else written_by(self.work, stream)

    @property
    def writes_disk(self) -> bool:
        """Whether a step writes to the disk."""
        return self.layout.stream is not None and self.layout.stream.spills

    @property
    def rank(self) -> tuple[float, bool, bool, bool]:
        """Sorts candidates by their seconds, and of two alike the one with fewer moving parts first."""
        return self.seconds, self.writes_disk, streams(self.layout.weights), self.layout.stream is not None

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
            Candidate(layout=_layout(work, storage, recompute=each), work=work, speeds=speeds, budget=budget)
            for storage in weights
            if not streams(storage)
            for each in again
        ]
    if way != "whole" or not found:
        for storage in weights:
            found += _streamed(work, storage, speeds, budget, fixed)
    return found


def fastest(candidates: Iterable[Candidate]) -> Candidate:
    """Returns the candidate to choose: the fastest of one precision, and of the precisions the one worth its price.

    Within a precision nothing weighs against speed but what wears a disk out, and that by WORN_DISK at most, so that
    more memory, a disk or a faster GPU do not lead to a slower plan.
    """
    every = list(candidates)
    by_precision: dict[bool, list[Candidate]] = {}
    for candidate in every:
        by_precision.setdefault(in_4_bits(candidate.layout.weights), []).append(candidate)
    best = [_sparing(alike) for alike in by_precision.values()]

    def price(candidate: Candidate) -> float:
        weights = candidate.layout.weights
        if in_4_bits(weights):  # on the GPU or not: streamed, they fill a quarter of the RAM
            return candidate.seconds * FOUR_BIT_WEIGHTS
        return candidate.seconds * (FOUR_BIT_WEIGHTS * STREAMED_WEIGHTS if streams(weights) else 1.0)

    chosen = min(best, key=price)
    if chosen.writes_disk:  # for the sake of the model's own weights, no disk is worn by the slower plan
        dry = [candidate for candidate in every if not candidate.writes_disk and candidate.seconds <= chosen.seconds]
        return fastest(dry) if dry else chosen
    return chosen


def _sparing(candidates: Sequence[Candidate]) -> Candidate:
    """Returns of those that are hardly slower than the fastest the one that writes least to the disk."""
    soonest = min(candidates, key=lambda c: c.rank)
    if not soonest.writes_disk:
        return soonest
    near = [candidate for candidate in candidates if candidate.seconds <= WORN_DISK * soonest.seconds]
    return min(near, key=lambda c: (c.written_bytes, c.rank))


def _streamed(
    work: Workload, weights: BaseWeights, speeds: Speeds, budget: Budget, fixed: Mapping[str, Any]
) -> Iterator[Candidate]:
    def candidate(plan: StreamPlan, *, too_large: bool = False) -> Candidate:
        layout = _layout(work, weights, stream=plan)
        return Candidate(layout=layout, work=work, speeds=speeds, budget=budget, too_large=too_large)

    on_device: dict[tuple[object, ...], _OnDevice] = {}
    fitting: list[Homes] = []
    for homes in all_homes(work, weights, fixed):
        if any(_outdoes(other, homes) for other in fitting):
            continue
        # Among homes other than the device, none changes what the device holds.
        key = tuple(home == "gpu" for home in homes.waiting), homes.kv, work.on_gpu or homes
        device = on_device.get(key)
        if device is not None and not device.fits:
            continue  # one plan tells what the device lacks

        def plan(grain: Grain, homes: Homes = homes) -> StreamPlan:
            return homes.plan(work, weights, fixed, grain)

        if device is None:
            device = on_device[key] = _OnDevice.of(work, plan, budget, _grains(fixed))
        coarsest, finest = plan(device.grains[0]), plan(device.grains[-1])
        if homes.kv == "host" and "kv_home" not in fixed and _all_in_rings(work, coarsest):
            continue  # every layer is in a ring: nothing to offload; equals the plan with the device as home
        if device.too_large(work, coarsest, finest, budget):
            yield candidate(coarsest, too_large=True)
            continue
        found = candidate(coarsest)
        if finest != coarsest and coarsest.spills and found.short_of("host") and candidate(finest).fits:
            # Tiles on their way to the disk are staged on the host: the coarsest that it has room for.
            grained = (candidate(plan(grain)) for grain in device.grains)
            found = next(finer for finer in grained if finer.fits)
        yield found
        stream = found.layout.stream
        assert stream is not None
        if found.fits:
            fitting.append(homes)
        if device.layers and stream.checkpoint_every == 1:
            yield candidate(replace(stream, keep_layers=device.layers))


@dataclass(frozen=True, kw_only=True)
class _OnDevice:
    """What plans have in common that leave the same data on the device."""

    grains: list[Grain]
    "Those with which they fit the device, coarsest first; the finest where none does."
    fits: bool
    layers: int | None
    "Layers of a single tile that the device has room to keep."
    rest: Mapping[Place, int]
    "Least bytes of what is not in the homes between the passes; empty where the host is the device."

    @staticmethod
    def of(work: Workload, plan: Callable[[Grain], StreamPlan], budget: Budget, grains: Sequence[Grain]) -> _OnDevice:
        # Of the tiles that are longer than the window, the shortest holds it whole.
        following = [*(tile for tile, _, _ in grains[1:]), 0]
        usable = [
            grain
            for grain, finer in zip(grains, following, strict=True)
            if grain[0] <= work.context or finer < work.context or grain[0] == grains[-1][0]
        ]
        cut = [(min(tile, work.context), min(key_block, work.context), piece) for tile, key_block, piece in usable]
        place: Place = "gpu" if work.on_gpu else "host"
        left = budget.limit(place) - bytes_of_any_tile(work, plan(cut[0]), place)
        for grain in cut:
            coarsest = plan(grain)
            if grain != cut[-1] and key_value_bytes(work, coarsest, place) > left:
                continue  # no ledger is needed to see that it does not fit
            ledger = streamed_ledger(work, coarsest)
            if fits := ledger.peak(place) <= budget.limit(place):
                break
        waiting = {line.name for line in (*_staged(work, coarsest), *border_state_parts(work, coarsest, "gpu"))}
        waiting |= {QUANTISING, LOADING, AT_HOME, READ_AHEAD}
        rest: dict[Place, int] = {}
        if work.on_gpu:
            for where in ("host", "disk"):
                rest[where] = sum(
                    line.bytes for line in ledger.lines if line.where == where and line.name not in waiting
                )
        return _OnDevice(
            grains=cut[cut.index(grain) :],
            fits=fits,
            layers=_kept_layers(work, coarsest, budget) if fits else None,
            rest=rest,
        )

    def too_large(self, work: Workload, coarsest: StreamPlan, finest: StreamPlan, budget: Budget) -> bool:
        """Whether a plan leaves no room on the host or the disk with any of its grains."""
        needed = dict(self.rest)
        if not needed:
            return False
        # Staging is least with the shortest tiles; states at the tiles' borders with the longest, and so are keys and
        # values, of which a window of one tile saves none.
        pairs = zip(_staged(work, coarsest), _staged(work, finest), strict=True)
        least = (min(pair, key=lambda line: line.bytes) for pair in pairs)
        for line in (*least, *border_state_parts(work, coarsest, "gpu")):
            if line.where in needed:
                needed[line.where] += line.bytes
        return any(size > budget.limit(where) for where, size in needed.items())


def _staged(work: Workload, plan: StreamPlan) -> Iterator[Line]:
    """Lists what waits in the homes between the passes and is staged on its way, apart from weights."""
    return home_parts(work, plan, min(plan.tile, work.context))


_NEARER: Mapping[Home, int] = {"gpu": 0, "host": 1, "disk": 2}


def _outdoes(one: Homes, other: Homes) -> bool:
    """Whether a plan takes no longer than another and writes no more to the disk, with the same data on the device."""
    if one.kv != other.kv or one.stash != other.stash or one.repeated > other.repeated:
        return False
    pairs = list(zip(one.waiting, other.waiting, strict=True))
    if any((mine == "gpu") != (its == "gpu") for mine, its in pairs):
        return False
    return all(_NEARER[mine] <= _NEARER[its] for mine, its in ((one.weights, other.weights), *pairs))


def _all_in_rings(work: Workload, plan: StreamPlan) -> bool:
    return layers_of_ring(work.spec, plan.tile, work.context)[0] == work.spec.layers


def _kept_layers(work: Workload, plan: StreamPlan, budget: Budget) -> int | None:
    """Counts the layers of a single tile's plan that the GPU has room to keep; None if it has room for none."""
    if not work.on_gpu or work.context > plan.tile or plan.streams_weights:
        return None
    fit, least_unfit = 0, work.spec.layers + 1
    while least_unfit - fit > 1:  # memory rises with each layer kept
        layers = (fit + least_unfit) // 2
        keeping = streamed_ledger(work, replace(plan, keep_layers=layers))
        fit, least_unfit = (layers, least_unfit) if keeping.peak("gpu") <= budget.gpu else (fit, layers)
    return fit or None


def _grains(fixed: Mapping[str, Any]) -> list[Grain]:
    """Lists the grains, coarsest first."""
    grains = []
    for usual_tile, usual_block, loss_piece in _GRAINS:
        tile = fixed.get("tile", min(usual_tile, fixed.get("key_block", usual_tile)))
        key_block = fixed.get("key_block", max(usual_block, tile))
        grains.append((tile, key_block, fixed.get("loss_piece", loss_piece)))
    return list(dict.fromkeys(grains))


def _layout(
    work: Workload, weights: BaseWeights, *, stream: StreamPlan | None = None, recompute: bool = False
) -> StepLayout:
    return StepLayout(
        stream=stream,
        recompute=recompute,
        precision="nf4" if in_4_bits(weights) else work.compute_type,
        master_home=work.master_home,
        table_home=work.table_home,
        window_ranks=work.ranks,
    )
