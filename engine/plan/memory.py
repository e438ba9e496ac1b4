"""The memory ledger: every byte of a step, as named parts with their formulas.

Pure arithmetic. A part's `bytes` is the value of its formula, and a place's peak is the sum of its parts. Resident
parts count once; of transient ones, only the peak candidate that holds the most (engine.plan.activations).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

from engine.models.loss_chunk import loss_chunk
from engine.plan.activations import PeakCandidate, Phase
from engine.plan.full_tuning import state_parts
from engine.plan.home_lines import home_parts, slot_parts
from engine.plan.homes import Grain
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


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """All parts of one plan."""

    lines: tuple[Line, ...]
    phases: tuple[tuple[str, int], ...] = ()
    "Bytes on the compute device at each phase's peak; the parts are those of the highest phase."

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """Every line, with its formula."""
        return tuple(
            Part(name=line.name, where=line.where, bytes=line.bytes, formula=line.words()) for line in self.lines
        )

    @cached_property
    def _sums(self) -> dict[Place, int]:
        sums: dict[Place, int] = {"gpu": 0, "host": 0, "disk": 0}
        for line in self.lines:
            sums[line.where] += line.bytes
        return sums

    def peak(self, where: Place) -> int:
        """Sum of the parts in one place, in bytes."""
        return self._sums[where]


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
    parts = [
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
    return _close(_common(parts, device, moments, work, n, {}, piece), (), device, work, weights)


def streamed_ledger(work: Workload, plan: StreamPlan) -> Ledger:
    """Computes the ledger of the streamed step, layer-major, with every choice of `plan`."""
    device: Place = "gpu" if work.on_gpu else "host"
    common = _with_any_homes(
        work,
        plan.weights,
        plan.weights_home,
        plan.kv_home,
        (plan.tile, plan.key_block, plan.loss_piece),
        plan.activation_bits,
        plan.keep_layers,
        stash=plan.stash,
    )
    tile = min(plan.tile, work.context)
    waiting = (*home_parts(work, plan, tile), *border_state_parts(work, plan, device))
    return _close(common, waiting, device, work, plan.weights)


@lru_cache(maxsize=256)
def _with_any_homes(
    work: Workload,
    weights: BaseWeights,
    weights_home: Literal["host", "disk"],
    kv_home: Literal["gpu", "host"],
    grain: Grain,
    activation_bits: Literal[16, 8, 4],
    keep_layers: int,
    *,
    stash: bool,
) -> _Common:
    """Computes what streamed steps hold wherever hidden states, their gradient and attention outputs wait.

    Cached, since a planner compares dozens of steps that differ in these homes alone.
    """
    device: Place = "gpu" if work.on_gpu else "host"
    n = work.context
    plan = StreamPlan(
        weights=weights,
        weights_home=weights_home,
        kv_home=kv_home,
        tile=grain[0],
        key_block=grain[1],
        loss_piece=grain[2],
        activation_bits=activation_bits,
        keep_layers=keep_layers,
        stash=stash,
    )
    tile, key_block = min(plan.tile, n), min(plan.key_block, n)
    parts = [
        *lines_of_any_tile(work, plan.weights, plan.weights_home),
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
    return _common(parts, device, moments, work, tile, keys, piece)


@lru_cache(maxsize=64)
def lines_of_any_tile(work: Workload, weights: BaseWeights, home: Literal["host", "disk"]) -> tuple[Line, ...]:
    """Lists what every streamed step of a storage of the base weights holds, whatever its tiles and other homes.

    Cached, since a planner compares hundreds of steps that have these lines in common.
    """
    device: Place = "gpu" if work.on_gpu else "host"
    return (
        *fixed_parts(work, device),
        *weight_parts(work, weights, device, home),
        *(() if work.master_home is None else state_parts(work)),
        *unpacked_parts(work, weights, device),
    )


def bytes_of_any_tile(work: Workload, plan: StreamPlan, place: Place) -> int:
    """Bytes in one place of the lines that a plan has with every grain: weights, and what is in the homes."""
    lines = (*lines_of_any_tile(work, plan.weights, plan.weights_home), *home_parts(work, plan, tile=0))
    return sum(line.bytes for line in lines if line.where == place)


def key_value_bytes(work: Workload, plan: StreamPlan, place: Place) -> int:
    """Bytes of keys, values and their gradients in one place; 0 where ranks share them."""
    return _key_value_bytes(work, plan.kv_home, plan.tile, plan.key_block, place)


@lru_cache(maxsize=256)
def _key_value_bytes(work: Workload, home: Literal["gpu", "host"], tile: int, key_block: int, place: Place) -> int:
    if work.ranks > 1:
        return 0
    plan = StreamPlan(kv_home=home, tile=tile, key_block=key_block)
    lines = key_value_parts(work, plan, min(key_block, work.context), "gpu" if work.on_gpu else "host")
    return sum(line.bytes for line in lines if line.where == place)


# --- transient allocations -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Common:
    """What steps hold that differ in the homes of what waits between the passes alone."""

    lines: tuple[Line, ...]
    "Lines of what is held all the time."
    highest: tuple[Line, ...]
    "Those of the peak candidate that holds the most."
    peaks: tuple[tuple[Phase, int], ...]
    "Bytes of each phase's highest candidate."
    allocated: tuple[int, int]
    "See `_allocated`."

    @cached_property
    def transient(self) -> int:
        """Bytes of the highest candidate."""
        return max(size for _, size in self.peaks)


def _common(
    parts: Sequence[Line],
    device: Place,
    moments: Sequence[PeakCandidate],
    work: Workload,
    tokens: int,
    keys: Mapping[Phase, int],
    piece: int,
) -> _Common:
    """Finds the highest peak candidate."""
    logits = piece * work.spec.vocab_size
    sizes = [moment.bytes(tokens, keys.get(moment.phase, 0), logits) for moment in moments]
    highest = moments[sizes.index(max(sizes))]
    peaks: dict[Phase, int] = {}
    for moment, size in zip(moments, sizes, strict=True):
        peaks[moment.phase] = max(peaks.get(moment.phase, 0), size)
    lines = tuple(_moment_parts(highest, device, work, tokens, keys.get(highest.phase, 0), piece))
    return _Common(
        lines=tuple(parts),
        highest=lines,
        peaks=tuple(peaks.items()),
        allocated=_allocated((*parts, *lines), device),
    )


def _allocated(lines: Iterable[Line], device: Place) -> tuple[int, int]:
    """Sums what the device's allocator serves, and what the host's does beside weights at home."""
    own = home = 0
    for line in lines:
        if line.name in NOT_ALLOCATED:
            continue
        if line.where == device:
            own += line.bytes
        if line.where == "host" and line.name not in (AT_HOME, TABLE_AT_HOME):
            home += line.bytes
    return own, home


def _close(common: _Common, waiting: Sequence[Line], device: Place, work: Workload, weights: BaseWeights) -> Ledger:
    """Adds what waits in the homes, and the allocator's slack on all that it allocates."""
    parts = [*common.lines, *waiting, *common.highest]
    own, home = (sum(both) for both in zip(common.allocated, _allocated(waiting, device), strict=True))
    transient = common.transient
    slack = round(ALLOCATOR_SLACK * own)
    if device == "host":
        home += slack
    parts.append(
        Line(
            name="allocator slack",
            where=device,
            bytes=slack,
            words=lambda: f"{ALLOCATOR_SLACK:.0%} of {own:,} B, estimated",
        )
    )
    parts.append(loading_part(work, weights, home))
    if not work.on_gpu:
        parts.append(
            Line(
                name="freed memory that the heap keeps",
                where="host",
                bytes=round(HEAP_RETENTION * transient),
                words=lambda: f"{HEAP_RETENTION:.0%} of {transient:,} B of activations and logits, measured once",
            )
        )
    held = own - transient
    phases = tuple((phase, held + size) for phase, size in common.peaks)
    return Ledger(lines=tuple(part for part in parts if part.bytes), phases=phases)


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
