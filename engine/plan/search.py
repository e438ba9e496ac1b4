"""Searches step layouts for the fastest that fits a machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from engine.hardware.machine import Machine
from engine.plan.homes import Grain, Homes, all_homes
from engine.plan.ledger_lines import Place
from engine.plan.memory import Ledger, StepMemory, whole_sequence_ledger
from engine.plan.scoring import scoring_part
from engine.plan.speeds import Speeds, speeds_of
from engine.plan.step_layout import StepLayout
from engine.plan.stream_plan import BaseWeights, StreamPlan, in_4_bits, streams
from engine.plan.tile_peaks import repeats_keys
from engine.plan.time import TimePart, streamed_time, total_seconds, whole_sequence_time
from engine.plan.transfers import moved_by, written_by
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
_SHORT_BLOCKS = (1024, 4096, 256)
"Where the kernel repeats a block's keys for every head of a query (heads of 512 on a card of 12 GB)."
_SHORT_WINDOW = 8192
"Tokens of the longest windows for which larger pieces of the loss are searched, too."


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
            gpu=max(0, _left(total, total if free is None else free)) if total else 0,
            host=max(0, _left(machine.ram_total, machine.ram_available)),
            disk=round((1 - HEADROOM) * machine.disk_free),
        )

    def limit(self, where: Place) -> int:
        """Returns the bytes of one place."""
        return self.gpu if where == "gpu" else self.host if where == "host" else self.disk


def _left(total: int, free: int) -> int:
    return round((1 - HEADROOM) * total) - max(0, total - free)


def ram_overdrawn(machine: Machine) -> int:
    """Returns the bytes of RAM that others hold of what should stay free: so many more are needed to have any."""
    return max(0, -_left(machine.ram_total, machine.ram_available))


@dataclass(frozen=True, kw_only=True)
class _Setting:
    """What the candidates of one search have in common."""

    work: Workload
    speeds: Speeds
    budget: Budget
    memory: StepMemory
    "Of the streamed steps of its window."


_PLACES: tuple[Place, ...] = ("gpu", "host", "disk")


@dataclass(kw_only=True, eq=False)
class Candidate:
    """One step layout with its ledger and its time, each computed when it is asked for."""

    setting: _Setting
    weights: BaseWeights
    stream: StreamPlan | None = None
    "Plan of the tile-by-tile step; None for whole windows."
    recompute: bool = False
    "Whole windows: whether activations are recomputed in the backward pass."

    @cached_property
    def layout(self) -> StepLayout:
        """Layout of the step."""
        work = self.setting.work
        return StepLayout(
            stream=self.stream,
            recompute=self.recompute,
            precision="nf4" if in_4_bits(self.weights) else work.compute_type,
            master_home=work.master_home,
            table_home=work.table_home,
            window_ranks=work.ranks,
        )

    @cached_property
    def ledger(self) -> Ledger:
        """Ledger of one step."""
        if self.stream is None:
            return whole_sequence_ledger(self.setting.work, self.weights, recompute=self.recompute)
        return self.setting.memory.ledger(self.setting.work, self.stream)

    @cached_property
    def shortages(self) -> tuple[tuple[Place, int], ...]:
        """Bytes missing in each place that is too small."""
        ledger, budget = self.ledger, self.setting.budget
        missing = [(where, ledger.peak(where) - budget.limit(where)) for where in _PLACES]
        return tuple(each for each in missing if each[1] > 0)

    @cached_property
    def fits(self) -> bool:
        """Whether every place has room, headroom included."""
        return not self.shortages

    @cached_property
    def time(self) -> tuple[TimePart, ...]:
        """Time model of one window."""
        work, speeds = self.setting.work, self.setting.speeds
        if self.stream is None:
            parts = whole_sequence_time(work, self.weights, speeds, recompute=self.recompute)
        else:
            parts = streamed_time(work, self.stream, speeds)
        return (*parts, scoring_part(parts, self.layout)) if work.scored else parts

    @cached_property
    def seconds(self) -> float:
        """Seconds of one window."""
        return total_seconds(self.time)

    @property
    def moved_bytes(self) -> int:
        """Bytes that one window moves between the GPU and the homes of its data; 0 for whole windows."""
        return 0 if self.stream is None else moved_by(self.setting.work, self.stream).total

    @property
    def written_bytes(self) -> int:
        """Bytes that one window writes to the disk."""
        return 0 if self.stream is None else written_by(self.setting.work, self.stream)

    @property
    def writes_disk(self) -> bool:
        """Whether a step writes to the disk."""
        return self.stream is not None and self.stream.spills

    @property
    def rank(self) -> tuple[float, bool, bool, bool, bool]:
        """Sorts candidates by their seconds, and of two alike the one with fewer moving parts first."""
        stream = self.stream
        parted = stream is not None and stream.gradient_home != stream.hidden_home
        return self.seconds, self.writes_disk, streams(self.weights), stream is not None, parted

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
    memory: StepMemory | None = None,
) -> list[Candidate]:
    """Returns all candidates that are worth comparing, including those that do not fit.

    `weights` are the storages of the base weights that the configured precision allows. `fixed` holds the fields of
    streamed plans that are not searched. `memory` may have served other homes of this workload's masters and table.
    """
    again = {"auto": (True, False), "always": (True,), "never": (False,)}[recompute]
    setting = _Setting(work=work, speeds=speeds_of(machine, work), budget=budget, memory=memory or StepMemory())
    found: list[Candidate] = []
    if way != "streamed":
        # Whole windows need all weights at once, so streamed weights alone allow no such plan.
        found += [
            Candidate(setting=setting, weights=storage, recompute=each)
            for storage in weights
            if not streams(storage)
            for each in again
        ]
    if way != "whole" or not found:
        for storage in weights:
            found += _streamed(setting, storage, fixed)
    return found


def fastest(candidates: Iterable[Candidate]) -> Candidate:
    """Returns the candidate to choose: the fastest of one precision, and of the precisions the one worth its price.

    Within a precision nothing weighs against speed but what wears a disk out, and that by WORN_DISK at most, so that
    more memory, a disk or a faster GPU do not lead to a slower plan.
    """
    every = list(candidates)
    by_precision: dict[bool, list[Candidate]] = {}
    for candidate in every:
        by_precision.setdefault(in_4_bits(candidate.weights), []).append(candidate)
    best = [_sparing(alike) for alike in by_precision.values()]

    def price(candidate: Candidate) -> float:
        weights = candidate.weights
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


def _streamed(setting: _Setting, weights: BaseWeights, fixed: Mapping[str, Any]) -> Iterator[Candidate]:
    """Yields plans of the usual grains, and of short blocks where the GPU lacks room and a kernel repeats the keys."""
    work, lacks = setting.work, True
    for candidate in _of_grains(setting, weights, fixed, _grains(work.context, fixed, _GRAINS)):
        lacks &= candidate.short_of("gpu") > 0
        yield candidate
    if lacks and repeats_keys(work.spec, work.backend):
        yield from _of_grains(setting, weights, fixed, _grains(work.context, fixed, [_SHORT_BLOCKS]))


def _of_grains(
    setting: _Setting, weights: BaseWeights, fixed: Mapping[str, Any], usable: Sequence[Grain]
) -> Iterator[Candidate]:
    def candidate(plan: StreamPlan) -> Candidate:
        return Candidate(setting=setting, weights=weights, stream=plan)

    work = setting.work
    on_device: dict[tuple[object, ...], _OnDevice] = {}
    fitting: dict[tuple[object, ...], list[Homes]] = {}
    unlimited: dict[tuple[object, ...], list[Homes]] = {}  # those that are computed as if the device were larger
    hopeless: set[tuple[object, ...]] = set()  # those that lack host memory or disk wherever the gradient waits
    for homes in all_homes(work, weights, fixed):
        if any(other.outdoes(homes) for other in unlimited.get(homes.kinds, ())):
            continue
        alike = fitting.setdefault(homes.on_device, [])
        key = homes.on_device if work.on_gpu else (homes,)
        device = on_device.get(key)
        if device is not None and not device.fits:
            continue  # one plan tells what the device lacks
        if any(other.outdoes(homes) for other in alike):
            continue
        plan = partial(homes.plan, work, weights, fixed)
        if device is None:
            device = on_device[key] = _OnDevice.of(setting, plan, usable)
        others = (*homes.but_gradient, device.grains[0])
        if others in hopeless:
            continue
        coarsest = plan(device.grains[0])
        if homes.kv == "host" and "kv_home" not in fixed and _all_in_rings(work, coarsest):
            continue  # every layer is in a ring: nothing to offload; equals the plan with the device as home
        found = leanest = candidate(coarsest)
        if coarsest.spills and found.short_of("host"):
            # Tiles on their way to the disk are staged on the host: the coarsest that it has room for.
            leanest = candidate(plan(device.grains[-1]))
            if leanest.fits:
                found = next(finer for grain in device.grains if (finer := candidate(plan(grain))).fits)
        yield found
        if found.fits:
            if found.stream == coarsest:  # with a finer grain it may be slower than plans that leave the host more room
                alike.append(homes)
                # A single tile's gradient stays on the device anyway: a home of its own is no faster than another.
                parted = homes.gradient != homes.hidden and work.context <= usable[0][0]
                if device.limits_nothing(work, weights, usable) and not parted:
                    unlimited.setdefault(homes.kinds, []).append(homes)
            if device.layers and homes.every == 1 and found.stream is not None:
                yield candidate(replace(found.stream, keep_layers=device.layers))
            if device.finer_layers and homes.every == 1:
                yield candidate(replace(plan(device.grains[1]), keep_layers=device.finer_layers))
        elif device.fits and homes.no_gradient_helps(min(found.short_of("host"), leanest.short_of("host")), work):
            hopeless.add(others)


class _OnDevice(NamedTuple):
    """What plans have in common that leave the same data on the device."""

    grains: Sequence[Grain]
    "Those with which they fit the device, coarsest first; the finest where none does."
    fits: bool
    layers: int | None
    "Layers of a single tile that the device has room to keep."
    finer_layers: int | None = None
    "The same with smaller pieces of the loss, the second grain, where these leave room for more."

    def limits_nothing(self, work: Workload, weights: BaseWeights, usable: Sequence[Grain]) -> bool:
        """Whether leaving less on the device would allow no coarser grain, and no more layers to be kept."""
        keeps = work.on_gpu and work.context <= usable[0][0] and not streams(weights)
        return self.grains[0] == usable[0] and (not keeps or self.layers == work.spec.layers)

    @staticmethod
    def of(setting: _Setting, plan: Callable[[Grain], StreamPlan], grains: Sequence[Grain]) -> _OnDevice:
        place: Place = "gpu" if setting.work.on_gpu else "host"
        for number, grain in enumerate(grains):
            coarsest = plan(grain)
            if setting.memory.ledger(setting.work, coarsest).peak(place) <= setting.budget.limit(place):
                left, layers = grains[number:], _kept_layers(setting, coarsest)
                more = None
                if len(left) > 1 and left[1][:2] == grain[:2]:
                    more = _kept_layers(setting, plan(left[1]))
                return _OnDevice(left, True, layers, None if more == layers else more)
        return _OnDevice(grains[-1:], fits=False, layers=None)


def _all_in_rings(work: Workload, plan: StreamPlan) -> bool:
    return layers_of_ring(work.spec, plan.tile, work.context)[0] == work.spec.layers


def _kept_layers(setting: _Setting, plan: StreamPlan) -> int | None:
    """Counts the layers of a single tile's plan that the GPU has room to keep; None if it has room for none."""
    work = setting.work
    if not work.on_gpu or work.context > plan.tile or plan.streams_weights:
        return None
    fit, least_unfit = 0, work.spec.layers + 1
    while least_unfit - fit > 1:  # memory rises with each layer kept
        layers = (fit + least_unfit) // 2
        keeping = setting.memory.ledger(work, replace(plan, keep_layers=layers))
        fit, least_unfit = (layers, least_unfit) if keeping.peak("gpu") <= setting.budget.gpu else (fit, layers)
    return fit or None


def _grains(context: int, fixed: Mapping[str, Any], usual: Sequence[Grain]) -> list[Grain]:
    """Lists the grains that differ for a context, coarsest first."""
    grains = []
    for usual_tile, usual_block, loss_piece in usual:
        tile = fixed.get("tile", min(usual_tile, fixed.get("key_block", usual_tile)))
        key_block = fixed.get("key_block", max(usual_block, tile))
        grains.append((tile, key_block, fixed.get("loss_piece", loss_piece)))
    grains = list(dict.fromkeys(grains))
    # Of the tiles that are longer than the window, the shortest holds it whole.
    following = [*(tile for tile, _, _ in grains[1:]), 0]
    usable = (
        grain
        for grain, finer in zip(grains, following, strict=True)
        if grain[0] <= context or finer < context or grain[0] == grains[-1][0]
    )
    cut = list(dict.fromkeys((min(tile, context), min(key_block, context), piece) for tile, key_block, piece in usable))
    # Calls of the loss are a tenth of a small model's step over a short window.
    if cut[0][2] < context <= _SHORT_WINDOW and "loss_piece" not in fixed:
        cut.insert(0, (*cut[0][:2], 2 * cut[0][2]))
    return cut
