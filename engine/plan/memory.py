"""The memory ledger: where every byte of a step goes, as named parts with their formulas.

Pure arithmetic. A part's `bytes` is what its formula says, and a place's peak is the sum of its parts. What is held all
the time is counted once; of what comes and goes, the moment that holds the most (engine.plan.activations). Constants
that were measured, not derived, are named here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from engine.models.spec import ModelSpec
from engine.plan.activations import Held, Moment, kept_layer, tile_moments, window_moments
from engine.plan.stream_plan import StreamPlan
from engine.plan.workload import Workload

Place = Literal["gpu", "host", "disk"]
BaseWeights = Literal["resident", "nf4", "streamed"]

MIB = 1024**2
CUDA_CONTEXT = 850 * MIB
"CUDA context and loaded kernels, outside the allocator: 841 to 855 MiB on an H100. Smaller cards should take less."
HOST_PROCESS = 2048 * MIB
"Python, torch, transformers and the CUDA libraries: 1,875 MiB measured after a step; and the loader of the data."
HOST_PROCESS_CPU = 1024 * MIB
"Python, torch and transformers without CUDA. Estimate."
ALLOCATOR_SLACK = 0.04
"Share of everything allocated that the caching allocator loses to rounding and fragmentation. Estimate."
NF4_BITS = 4.127
"4 bits, and one 8-bit scale for 64 weights with its own second-level scale (QLoRA, arXiv 2305.14314)."
LORA_BYTES = 16
"A parameter of the adapter: fp32 value, gradient and two Adam states."
ROTARY_CACHE = 128 * MIB
"Rotary tables of all tiles are kept if they fit in this (engine.streaming.positions)."
CHECKPOINTS_KEPT = 3
"Two kept, one being written."
WINDOW_PIECE = 1024
"Tokens whose logits exist at once where a window is computed whole (engine.models.head)."


@dataclass(frozen=True, kw_only=True)
class Part:
    """One line of the ledger."""

    name: str
    where: Place
    bytes: int
    formula: str
    "In words, with its numbers."


@dataclass(frozen=True, kw_only=True)
class Line:
    """A part whose formula is put into words only when somebody reads it: a planner compares thousands."""

    name: str
    where: Place
    bytes: int
    words: Callable[[], str]


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """All parts of one plan."""

    lines: tuple[Line, ...]
    phases: tuple[tuple[str, int], ...] = ()
    "Bytes on the compute device that each phase reaches; the parts are those of the highest."

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """Every line, with its formula."""
        return tuple(
            Part(name=line.name, where=line.where, bytes=line.bytes, formula=line.words()) for line in self.lines
        )

    def peak(self, where: Place) -> int:
        """Sum of the parts in one place, in bytes."""
        return sum(line.bytes for line in self.lines if line.where == where)


def whole_sequence_ledger(work: Workload, weights: BaseWeights, *, recompute: bool = True) -> Ledger:
    """The ordinary path: one window at once.

    Args:
        work: Model and window.
        weights: Storage of the base weights.
        recompute: Whether only each layer's input is kept, and the rest computed again (gradient checkpointing).
    """
    device: Place = "gpu" if work.on_gpu else "host"
    n, element = work.context, work.element
    tables = 2 * n * work.spec.head_dim * element
    parts = [
        *_fixed_parts(work, device),
        *_weight_parts(work, weights, device),
        Line(
            name="rotary tables",
            where=device,
            bytes=tables,
            words=lambda: f"2 × {n:,} tokens × {work.spec.head_dim} × {element} B",
        ),
    ]
    moments = window_moments(work, recompute=recompute, four_bit=weights == "nf4")
    return _close(parts, device, moments, work, n, 0, min(WINDOW_PIECE, n))


def streamed_ledger(work: Workload, plan: StreamPlan) -> Ledger:
    """The streamed step, layer-major, with every choice of `plan`."""
    device: Place = "gpu" if work.on_gpu else "host"
    n = work.context
    tile, key_block = min(plan.tile, n), min(plan.key_block, n)
    parts = [
        *_fixed_parts(work, device),
        *_weight_parts(work, plan.weights, device),
        *_unpacked_parts(work, plan, device),
        *_factor_parts(work, device, layers=1 if n > plan.tile else work.spec.layers),
        *_key_value_parts(work, plan, key_block, device),
        *_slot_parts(work, plan, tile, device),
        *_kept_parts(work, plan, tile, device),
        *_home_parts(work, plan, tile),
    ]
    # A tile's own keys come first, then blocks from the beginning: two that follow one another are held together.
    first = min(key_block, n - tile)
    second = min(key_block, n - tile - first)
    keys = first + max(tile, second)
    piece = min(plan.loss_piece, n)
    moments = tile_moments(work, stash=plan.stash, encoded=plan.activation_bits < 16)
    return _close(parts, device, moments, work, tile, keys, piece)


# --- held all the time ---------------------------------------------------------------------------------------


def _fixed_parts(work: Workload, device: Place) -> Iterator[Line]:
    if work.on_gpu:
        yield Line(
            name="CUDA context and libraries",
            where="gpu",
            bytes=CUDA_CONTEXT,
            words=lambda: "850 MiB, measured on an H100",
        )
        yield Line(
            name="matrix library's workspaces",
            where="gpu",
            bytes=work.workspaces,
            words=lambda: f"2 threads × {work.workspaces // 2:,} B",
        )
    process = HOST_PROCESS if work.on_gpu else HOST_PROCESS_CPU
    yield Line(
        name="the training process itself",
        where="host",
        bytes=process,
        words=lambda: f"{process // MIB:,} MiB, {'measured' if work.on_gpu else 'estimated'}",
    )
    tokens = 4 * work.repository_tokens
    yield Line(
        name="the token store",
        where="disk",
        bytes=tokens,
        words=lambda: f"{work.repository_tokens:,} tokens × 4 B, memory-mapped",
    )
    yield Line(
        name="checkpoints of the adapter",
        where="disk",
        bytes=CHECKPOINTS_KEPT * 12 * work.lora_parameters,
        words=lambda: f"{CHECKPOINTS_KEPT} × {work.lora_parameters:,} parameters × 12 B (value and Adam states)",
    )
    yield Line(
        name="LoRA weights, gradients and Adam states",
        where=device,
        bytes=LORA_BYTES * work.lora_parameters,
        words=lambda: f"{work.lora_parameters:,} parameters × {LORA_BYTES} B (4 + 4 + 8)",
    )


def _weight_parts(work: Workload, weights: BaseWeights, device: Place) -> Iterator[Line]:
    spec, element = work.spec, work.element
    outside = spec.parameters - spec.layers * spec.layer_parameters
    yield Line(
        name="embeddings, head and last norm",
        where=device,
        bytes=outside * element,
        words=lambda: f"{outside:,} parameters × {element} B ({'tied' if spec.tied_embeddings else 'not tied'})",
    )
    layers = spec.layers * spec.layer_parameters
    if weights == "nf4":
        quantised = spec.layers * spec.linear_parameters
        rest = layers - quantised
        yield Line(
            name="decoder layers, NF4",
            where=device,
            bytes=round(quantised * NF4_BITS / 8) + rest * element,
            words=lambda: f"{quantised:,} weights × {NF4_BITS} bits + {rest:,} in norms × {element} B",
        )
    elif weights == "streamed":
        yield Line(
            name="two decoder layers, streamed",
            where=device,
            bytes=2 * spec.layer_parameters * element,
            words=lambda: f"2 × {spec.layer_parameters:,} parameters × {element} B",
        )
        yield Line(
            name="decoder layers at home",
            where="host",
            bytes=layers * element,
            words=lambda: f"{layers:,} parameters × {element} B, pinned",
        )
    else:
        yield Line(
            name=f"decoder layers, {work.compute_type}",
            where=device,
            bytes=layers * element,
            words=lambda: f"{layers:,} parameters × {element} B",
        )


def _unpacked_parts(work: Workload, plan: StreamPlan, device: Place) -> Iterator[Line]:
    """The streamed step unpacks 4-bit matrices a layer at a time, for all its tiles."""
    if plan.weights == "nf4":
        unpacked, element = work.spec.linear_parameters, work.element
        yield Line(
            name="one layer's matrices, unpacked",
            where=device,
            bytes=unpacked * element,
            words=lambda: f"{unpacked:,} weights × {element} B",
        )


def _factor_parts(work: Workload, device: Place, *, layers: int) -> Iterator[Line]:
    """Adapters ready for products: in 16 bits each factor is a rounded one and its remainder."""
    ready, each = layers * work.lora_parameters // work.spec.layers, 4
    yield Line(
        name="adapters ready to multiply",
        where=device,
        bytes=ready * each,
        words=lambda: f"{ready:,} parameters × {each} B ({layers} of {work.spec.layers} layers)",
    )


def _key_value_parts(work: Workload, plan: StreamPlan, key_block: int, device: Place) -> Iterator[Line]:
    n, width, element = work.context, work.key_width, work.element
    shape = f"{n:,} tokens × {work.spec.kv_heads} heads × {work.spec.head_dim}"
    home: Place = device if plan.kv_home == "gpu" else "host"
    yield Line(
        name="keys and values of one layer",
        where=home,
        bytes=2 * n * width * element,
        words=lambda: f"2 × {shape} × {element} B",
    )
    yield Line(name="their gradients, fp32", where=home, bytes=2 * n * width * 4, words=lambda: f"2 × {shape} × 4 B")
    if plan.kv_home == "host" and work.on_gpu:
        yield Line(
            name="key blocks in flight",
            where="gpu",
            bytes=2 * 2 * key_block * width * (element + 4),
            words=lambda: f"2 buffers × 2 × {key_block:,} keys × {width:,} × ({element} + 4) B",
        )


def _slot_parts(work: Workload, plan: StreamPlan, tile: int, device: Place) -> Iterator[Line]:
    """Where tiles arrive on the device, and what stays there for each position."""
    spec, element = work.spec, work.element
    stored = _stored_bytes(work, plan) * spec.hidden_size
    stashed = work.query_width * element + 4 * spec.heads if plan.stash else 0
    a_token = round(stored) + spec.hidden_size * element + stashed
    yield Line(
        name="tiles in flight between the homes",
        where=device,
        bytes=2 * tile * a_token,
        words=lambda: f"2 buffers × {tile:,} tokens × {a_token:,} B (hidden states, gradients, stash)",
    )
    tables = 2 * spec.head_dim * element + 8  # and the positions themselves
    kept = work.context if tables * work.context <= ROTARY_CACHE else tile
    yield Line(name="rotary tables", where=device, bytes=tables * kept, words=lambda: f"{kept:,} tokens × {tables} B")


def _kept_parts(work: Workload, plan: StreamPlan, tile: int, device: Place) -> Iterator[Line]:
    """Layers that a lone tile does not compute again."""
    layers = min(plan.keep_layers, work.spec.layers) if work.context <= plan.tile else 0
    if layers:
        held = kept_layer(work)
        a_token = sum(size for _, size in held)
        yield Line(
            name="layers kept for the backward pass",
            where=device,
            bytes=layers * tile * a_token,
            words=lambda: f"{layers} layers × {tile:,} tokens × ({_in_words(held)}) B",
        )


def _stored_bytes(work: Workload, plan: StreamPlan) -> float:
    """Of one stored value of hidden states. Quantised ones carry one fp32 scale for a block of 64."""
    return work.element if plan.activation_bits == 16 else plan.activation_bits / 8 + 4 / 64


def _home_parts(work: Workload, plan: StreamPlan, tile: int) -> Iterator[Line]:
    """Hidden states, gradient stream and stash, wherever they live between the passes."""
    spec, n, element = work.spec, work.context, work.element
    home: Place = plan.hidden_home if work.on_gpu or plan.hidden_home == "disk" else "host"
    every = plan.checkpoint_every
    kept = stored_layers(spec.layers, every)
    per_value = _stored_bytes(work, plan)
    counted = f"{spec.layers} layers" if every == 1 else f"⌈{spec.layers} / {every}⌉ + {every} - 1 layers"
    yield Line(
        name="hidden states",
        where=home,
        bytes=round(kept * n * spec.hidden_size * per_value),
        words=lambda: f"({counted}) × {n:,} tokens × {spec.hidden_size:,} × {per_value:g} B",
    )
    yield Line(
        name="gradient stream",
        where=home,
        bytes=n * spec.hidden_size * element,
        words=lambda: f"{n:,} tokens × {spec.hidden_size:,} × {element} B",
    )
    if plan.stash:
        per_token = work.query_width * element + spec.heads * 4
        yield Line(
            name="stash: attention outputs and logsumexp",
            where=home,
            bytes=spec.layers * n * per_token,
            words=lambda: (
                f"{spec.layers} layers × {n:,} tokens × ({work.query_width:,} × {element} + {spec.heads} × 4) B"
            ),
        )
        if stashes_keys_values(spec):
            yield Line(
                name="stash: keys and values",
                where=home,
                bytes=spec.layers * n * 2 * work.key_width * element,
                words=lambda: f"{spec.layers} layers × {n:,} tokens × 2 × {work.key_width:,} × {element} B",
            )
    if home == "disk":
        yield _staging_part(work, plan, tile)


def _staging_part(work: Workload, plan: StreamPlan, tile: int) -> Line:
    """Each file has four tiles of its own on the host: two being read, two being written."""
    spec, element = work.spec, work.element
    hidden = stored_layers(spec.layers, plan.checkpoint_every) * _stored_bytes(work, plan) * spec.hidden_size
    a_token = round(hidden) + spec.hidden_size * element
    if plan.stash:
        keys = 2 * work.key_width * element if stashes_keys_values(spec) else 0
        a_token += spec.layers * (work.query_width * element + 4 * spec.heads + keys)
    return Line(
        name="tiles on their way to and from the disk",
        where="host",
        bytes=4 * tile * a_token,
        words=lambda: f"4 × {tile:,} tokens × {a_token:,} B (a row of every file)",
    )


def stashes_keys_values(spec: ModelSpec) -> bool:
    """Whether keys and values are kept beside the attention output: where the two are no larger than it."""
    return 2 * spec.kv_heads <= spec.heads


def stored_layers(layers: int, every: int) -> int:
    """Layer inputs that exist at once: every k-th layer's, and the k - 1 after one of them, computed again.

    The last layer's output is not among them: the gradient stream takes its place tile by tile.
    """
    return -(-layers // every) + min(every, layers) - 1


# --- what comes and goes -------------------------------------------------------------------------------------


def _close(
    parts: list[Line],
    device: Place,
    moments: Sequence[Moment],
    work: Workload,
    tokens: int,
    keys: int,
    piece: int,
) -> Ledger:
    """Adds the highest moment, and the allocator's slack on all that the allocator gives out."""
    logits = piece * work.spec.vocab_size
    sizes = [moment.bytes(tokens, keys, logits) for moment in moments]
    highest = moments[sizes.index(max(sizes))]
    parts += _moment_parts(highest, device, work, tokens, keys, piece)
    own = sum(part.bytes for part in parts if part.where == device and part.name not in _NOT_ALLOCATED)
    parts.append(
        Line(
            name="allocator slack",
            where=device,
            bytes=round(ALLOCATOR_SLACK * own),
            words=lambda: f"{ALLOCATOR_SLACK:.0%} of {own:,} B, measured",
        )
    )
    held = own - max(sizes)
    phases: dict[str, int] = {}
    for moment, size in zip(moments, sizes, strict=True):
        phases[moment.phase] = max(phases.get(moment.phase, 0), held + size)
    return Ledger(lines=tuple(part for part in parts if part.bytes), phases=tuple(phases.items()))


def _moment_parts(moment: Moment, device: Place, work: Workload, tokens: int, keys: int, piece: int) -> Iterator[Line]:
    when = f"{moment.phase} pass, {moment.at}" if moment.phase != "loss" else "loss"
    yield Line(
        name=f"activations at the peak ({when})",
        where=device,
        bytes=tokens * moment.token_bytes,
        words=lambda: f"{tokens:,} tokens × ({_in_words(moment.token)}) B",
    )
    yield Line(
        name="key blocks' gradients at the peak",
        where=device,
        bytes=keys * moment.key_bytes,
        words=lambda: f"{keys:,} keys of two blocks × ({_in_words(moment.key)}) B",
    )
    yield Line(
        name="weights made for the moment, at the peak",
        where=device,
        bytes=moment.fixed_bytes,
        words=lambda: _in_words(moment.fixed),
    )
    yield Line(
        name="logits at the peak",
        where=device,
        bytes=piece * work.spec.vocab_size * moment.logit,
        words=lambda: f"{piece:,} tokens × {work.spec.vocab_size:,} × {moment.logit} B",
    )


def _in_words(held: Held) -> str:
    return " + ".join(f"{name} {size:,}" for name, size in held if size)


_NOT_ALLOCATED = ("CUDA context and libraries", "the training process itself")
