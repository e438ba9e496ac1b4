"""The memory ledger: every byte of a step, as named parts with their formulas.

Pure arithmetic. A part's `bytes` is the value of its formula, and a place's peak is the sum of its parts. Resident
parts count once; of transient ones, only the peak candidate that holds the most (engine.plan.activations).
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from engine.models.loss_chunk import loss_chunk
from engine.plan.activations import PeakCandidate, Phase
from engine.plan.full_tuning import state_parts
from engine.plan.home_lines import home_parts, slot_parts
from engine.plan.kv_lines import key_value_parts
from engine.plan.ledger_lines import NOT_ALLOCATED, Line, Place, fixed_parts, in_words
from engine.plan.recurrent import border_state_parts
from engine.plan.sequence import exchange_lines
from engine.plan.stream_plan import FORWARD_BLOCKS, BaseWeights, StreamPlan, in_4_bits
from engine.plan.tile_peaks import tile_peaks
from engine.plan.weight_lines import AT_HOME, TABLE_AT_HOME, factor_parts, loading_part, unpacked_parts, weight_parts
from engine.plan.window_peaks import window_peaks
from engine.plan.workload import Workload

ALLOCATOR_SLACK = 0.04
"Share of all allocations that the caching allocator loses to rounding and fragmentation. Estimate."
HEAP_RETENTION = 1.0
"""Share of activations and logits that the C library's heap keeps on a CPU, in freed blocks that later ones do not fit.
A 135M model in windows of 1,024 kept 1.1 times as much after its first update, and took 5.16 GiB in 24 updates where
3.39 GiB were counted without this."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One line of the ledger."""

    name: str
    where: Place
    bytes: int
    formula: str
    "Formula in words, with its numbers."


class Group(NamedTuple):
    """Lines with their sums, so that plans which have them in common need not add them up again."""

    lines: tuple[Line, ...]
    gpu: int
    host: int
    disk: int
    own: int
    "Bytes that the device's allocator serves."
    home: int
    "Bytes that the host's allocator serves, beside weights at home."

    def beside(self, other: Group) -> Group:
        """Returns the lines of both."""
        mine, its = self[1:], other[1:]
        return Group((*self.lines, *other.lines), *map(operator.add, mine, its))

    @staticmethod
    def of(lines: Iterable[Line], device: Place) -> Group:
        """Adds up lines that are held while `device` computes."""
        found, own, home = tuple(lines), 0, 0
        places: dict[Place, int] = {"gpu": 0, "host": 0, "disk": 0}
        for line in found:
            places[line.where] += line.bytes
            if line.name in NOT_ALLOCATED:
                continue
            if line.where == device:
                own += line.bytes
            if line.where == "host" and line.name not in (AT_HOME, TABLE_AT_HOME):
                home += line.bytes
        return Group(found, places["gpu"], places["host"], places["disk"], own, home)


class Transient(NamedTuple):
    """What comes and goes in a step."""

    highest: Group
    "Lines of the peak candidate that holds the most."
    peaks: tuple[tuple[Phase, int], ...]
    "Bytes of each phase's highest candidate."

    @property
    def bytes(self) -> int:
        """Bytes of the highest candidate."""
        return max(size for _, size in self.peaks)


class Ledger:
    """All lines of one plan: those of its groups, the allocator's slack, and what loading needs beside them."""

    def __init__(
        self, work: Workload, weights: BaseWeights, held: Group, waiting: Group, transient: Transient, loading: int
    ) -> None:
        """Adds up the groups.

        Args:
            work: Model and window.
            weights: Storage of the base weights.
            held: What is held all the time.
            waiting: What waits in its homes between the passes.
            transient: What comes and goes.
            loading: Bytes that loading needs in host memory, of which the step's own buffers take the place.
        """
        self._work, self._weights = work, weights
        self._held, self._waiting, self._transient = held, waiting, transient
        highest = transient.highest
        self._own = held.own + waiting.own + highest.own
        self._slack = round(ALLOCATOR_SLACK * self._own)
        self._home = held.home + waiting.home + highest.home
        gpu, host = held.gpu + waiting.gpu + highest.gpu, held.host + waiting.host + highest.host
        if work.on_gpu:
            gpu += self._slack
        else:
            self._home += self._slack
            host += self._slack + round(HEAP_RETENTION * transient.bytes)
        host += max(0, loading - self._home)
        self._peaks: dict[Place, int] = {"gpu": gpu, "host": host, "disk": held.disk + waiting.disk + highest.disk}

    def peak(self, where: Place) -> int:
        """Sum of the parts in one place, in bytes."""
        return self._peaks[where]

    @property
    def phases(self) -> tuple[tuple[str, int], ...]:
        """Bytes on the compute device at each phase's peak; the parts are those of the highest phase."""
        held = self._own - self._transient.bytes
        return tuple((phase, held + size) for phase, size in self._transient.peaks)

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """Every line, with its formula."""
        return tuple(
            Part(name=line.name, where=line.where, bytes=line.bytes, formula=line.words()) for line in self.lines
        )

    @property
    def lines(self) -> tuple[Line, ...]:
        """Every line that is not empty."""
        groups = (self._held.lines, self._waiting.lines, self._transient.highest.lines, self._closing())
        return tuple(line for group in groups for line in group if line.bytes)

    def _closing(self) -> Iterator[Line]:
        own, transient = self._own, self._transient.bytes
        yield Line(
            name="allocator slack",
            where="gpu" if self._work.on_gpu else "host",
            bytes=self._slack,
            words=lambda: f"{ALLOCATOR_SLACK:.0%} of {own:,} B, estimated",
        )
        yield loading_part(self._work, self._weights, self._home)
        if not self._work.on_gpu:
            yield Line(
                name="freed memory that the heap keeps",
                where="host",
                bytes=round(HEAP_RETENTION * transient),
                words=lambda: f"{HEAP_RETENTION:.0%} of {transient:,} B of activations and logits, measured once",
            )


def whole_sequence_ledger(work: Workload, weights: BaseWeights, *, recompute: bool = True) -> Ledger:
    """Computes the ledger of the ordinary path, one whole window at once.

    Args:
        work: Model and window.
        weights: Storage of the base weights.
        recompute: Whether only each layer's input is saved and the rest recomputed (gradient checkpointing).
    """
    device: Place = "gpu" if work.on_gpu else "host"
    n, element = work.context, work.element
    tables = 2 * n * work.spec.head_dim * element
    held = [
        *fixed_parts(work, device),
        *weight_parts(work, weights, device),
        *(() if work.master_home is None else state_parts(work)),
        Line(
            name="rotary tables",
            where=device,
            bytes=tables,
            words=lambda: f"2 × {n:,} tokens × {work.spec.head_dim} × {element} B",
        ),
    ]
    piece = min(loss_chunk(work.spec.vocab_size), n)
    moments = window_peaks(work, recompute=recompute, four_bit=in_4_bits(weights), pieces=piece < n)
    transient = _highest(moments, device, work, n, {}, piece)
    loading = loading_part(work, weights, later=0).bytes
    return Ledger(work, weights, Group.of(held, device), Group.of((), device), transient, loading)


def streamed_ledger(work: Workload, plan: StreamPlan) -> Ledger:
    """Computes the ledger of the streamed step, layer-major, with every choice of `plan`."""
    return StepMemory().ledger(work, plan)


class StepMemory:
    """Ledgers of the streamed steps of one window, on one device.

    A planner compares hundreds of steps that differ in the storage of the base weights, in homes, or in their tiles
    alone. What such steps have in common is computed once.
    """

    def __init__(self) -> None:
        self._of_weights: dict[tuple[object, ...], tuple[Group, int]] = {}
        self._of_tiles: dict[tuple[object, ...], tuple[Group, Transient]] = {}
        self._of_both: dict[tuple[object, ...], Group] = {}
        self._of_homes: dict[tuple[object, ...], Group] = {}

    def ledger(self, work: Workload, plan: StreamPlan) -> Ledger:
        """Returns the ledger of a plan; workloads may differ in the homes of masters and of the layers' table alone."""
        weights = (plan.weights, plan.weights_home, work.master_home, work.table_home)
        grain = (plan.tile, plan.key_block, plan.loss_piece)
        tiles = (grain, plan.kv_home, plan.stash, plan.activation_bits, plan.keep_layers)
        homes = (*plan.homes, plan.kv_home, plan.checkpoint_every, plan.activation_bits, plan.tile)
        if weights not in self._of_weights:
            self._of_weights[weights] = _weights_and_states(work, plan)
        if tiles not in self._of_tiles:
            self._of_tiles[tiles] = _tiles(work, plan)
        if homes not in self._of_homes:
            self._of_homes[homes] = _waiting(work, plan)
        (of_weights, loading), (of_tiles, transient) = self._of_weights[weights], self._of_tiles[tiles]
        both = (weights, tiles)
        if both not in self._of_both:
            self._of_both[both] = of_weights.beside(of_tiles)
        return Ledger(work, plan.weights, self._of_both[both], self._of_homes[homes], transient, loading)


def _weights_and_states(work: Workload, plan: StreamPlan) -> tuple[Group, int]:
    """Returns what a storage of the base weights holds whatever its tiles and other homes, and what loading needs."""
    device: Place = "gpu" if work.on_gpu else "host"
    lines = (
        *fixed_parts(work, device),
        *weight_parts(work, plan.weights, device, plan.weights_home),
        *(() if work.master_home is None else state_parts(work)),
        *unpacked_parts(work, plan.weights, device),
    )
    return Group.of(lines, device), loading_part(work, plan.weights, later=0).bytes


def _waiting(work: Workload, plan: StreamPlan) -> Group:
    """Returns what waits between the passes, and is staged on its way."""
    device: Place = "gpu" if work.on_gpu else "host"
    lines = (*home_parts(work, plan, min(plan.tile, work.context)), *border_state_parts(work, plan, device))
    return Group.of(lines, device)


def _tiles(work: Workload, plan: StreamPlan) -> tuple[Group, Transient]:
    """Returns what tiles hold all the time, and what comes and goes with them."""
    device: Place = "gpu" if work.on_gpu else "host"
    n = work.context
    tile, key_block = min(plan.tile, n), min(plan.key_block, n)
    held = [
        *factor_parts(work, device, layers=1 if n > plan.tile else work.spec.layers),
        *(key_value_parts(work, plan, key_block, device) if work.ranks == 1 else exchange_lines(work, device)),
        *slot_parts(work, plan, tile, device),
    ]
    # A tile's own keys come first, then blocks from the beginning. Two consecutive blocks are held together.
    before = n - tile
    if work.spec.windowed_layers == work.spec.layers:
        before = min(before, (work.spec.sliding_window or n) - 1)
    first = min(key_block, before)
    second = min(key_block, before - first)
    paged = plan.kv_home == "host" and work.on_gpu
    single = paged or work.spec.latent is not None
    longest = min(key_block if single else FORWARD_BLOCKS * key_block, before)
    keys: dict[Phase, int] = {"forward": max(tile, longest), "backward": first + max(tile, second)}
    piece = min(plan.loss_piece, n)
    keep = plan.keep_layers if n <= plan.tile else 0
    moments = tile_peaks(work, stash=plan.stash, encoded=plan.activation_bits < 16, keep=keep)
    return Group.of(held, device), _highest(moments, device, work, tile, keys, piece)


# --- transient allocations -----------------------------------------------------------------------------------


def _highest(
    moments: Sequence[PeakCandidate],
    device: Place,
    work: Workload,
    tokens: int,
    keys: Mapping[Phase, int],
    piece: int,
) -> Transient:
    """Finds the highest peak candidate."""
    logits = piece * work.spec.vocab_size
    sizes = [moment.bytes(tokens, keys.get(moment.phase, 0), logits) for moment in moments]
    highest = moments[sizes.index(max(sizes))]
    peaks: dict[Phase, int] = {}
    for moment, size in zip(moments, sizes, strict=True):
        peaks[moment.phase] = max(peaks.get(moment.phase, 0), size)
    lines = _moment_parts(highest, device, work, tokens, keys.get(highest.phase, 0), piece)
    return Transient(Group.of(lines, device), tuple(peaks.items()))


def _moment_parts(
    moment: PeakCandidate, device: Place, work: Workload, tokens: int, keys: int, piece: int
) -> Iterator[Line]:
    when = f"{moment.phase} pass, {moment.at}" if moment.phase != "loss" else "loss"
    yield Line(
        name=f"activations at the peak ({when})",
        where=device,
        bytes=tokens * moment.token_bytes,
        words=lambda: f"{tokens:,} tokens × ({in_words(moment.token)}) B",
    )
    yield Line(
        name="layers kept for the backward pass",
        where=device,
        bytes=tokens * moment.kept_bytes,
        words=lambda: f"{tokens:,} tokens × ({in_words(moment.kept)}) B",
    )
    yield Line(
        name="key blocks at the peak",
        where=device,
        bytes=keys * moment.key_bytes,
        words=lambda: f"{keys:,} keys × ({in_words(moment.key)}) B",
    )
    yield Line(
        name="weights and gradients made for the moment, at the peak",
        where=device,
        bytes=moment.fixed_bytes,
        words=lambda: in_words(moment.fixed),
    )
    yield Line(
        name="logits at the peak",
        where=device,
        bytes=piece * work.spec.vocab_size * moment.logit,
        words=lambda: f"{piece:,} tokens × {work.spec.vocab_size:,} × {moment.logit} B",
    )
