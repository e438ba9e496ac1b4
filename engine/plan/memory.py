"""The memory ledger: where every byte of a step goes, as named parts with their formulas.

Pure arithmetic. A part's `bytes` is what its formula says, and a place's peak is the sum of its parts.
Constants that were estimated, not derived, are named here; `engine probe` measures a plan against its ledger.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from engine.models.spec import ModelSpec
from engine.plan.stream_plan import StreamPlan
from engine.plan.workload import Workload

Place = Literal["gpu", "host", "disk"]
BaseWeights = Literal["resident", "nf4", "streamed"]

MIB = 1024**2
CUDA_CONTEXT = 512 * MIB
"CUDA context, kernels and cuBLAS workspaces. Estimate: 300 to 600 MiB by card and driver."
HOST_PROCESS = 3072 * MIB
"Python, torch and the CUDA libraries. Estimate."
HOST_PROCESS_CPU = 1024 * MIB
"Python, torch and transformers without CUDA. Estimate."
ALLOCATOR_SLACK = 0.04
"Share of everything allocated that the caching allocator loses to rounding and fragmentation. Estimate."
NF4_BITS = 4.127
"4 bits, and one 8-bit scale for 64 weights with its own second-level scale (QLoRA, arXiv 2305.14314)."
LORA_BYTES = 18
"A parameter of the adapter: fp32 value, gradient and two Adam states, and a 16-bit copy to compute with."
CHECKPOINTS_KEPT = 3
"Two kept, one being written."


@dataclass(frozen=True, kw_only=True)
class Part:
    """One line of the ledger."""

    name: str
    where: Place
    bytes: int
    formula: str
    "In words, with its numbers."


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """All parts of one plan."""

    parts: tuple[Part, ...]

    def peak(self, where: Place) -> int:
        """Sum of the parts in one place, in bytes."""
        return sum(part.bytes for part in self.parts if part.where == where)


def whole_sequence_ledger(work: Workload, weights: BaseWeights, loss_piece: int = 1024) -> Ledger:
    """The ordinary path: one window at once, each layer's input kept, the rest computed again (checkpointing).

    The head still runs in pieces of `loss_piece` tokens.
    """
    device: Place = "gpu" if work.on_gpu else "host"
    spec, n = work.spec, work.context
    kept = (spec.layers + 1) * n * spec.hidden_size * work.element
    activations = n * _activation_bytes(work)
    parts = [
        *_fixed_parts(work, device),
        *_weight_parts(work, weights, device),
        Part(
            name="layer inputs kept for the backward pass",
            where=device,
            bytes=kept,
            formula=f"({spec.layers} layers + 1) × {n:,} tokens × {spec.hidden_size:,} × {work.element} B",
        ),
        Part(
            name="activations of one layer",
            where=device,
            bytes=activations,
            formula=f"{n:,} tokens × {_activation_bytes(work):,} B ({_ACTIVATIONS})",
        ),
        _head_part(work, loss_piece, activations, device),
    ]
    return _close(parts, device)


def streamed_ledger(work: Workload, plan: StreamPlan) -> Ledger:
    """The streamed step, layer-major, with every choice of `plan`."""
    device: Place = "gpu" if work.on_gpu else "host"
    spec, n = work.spec, work.context
    tile, key_block = min(plan.tile, n), min(plan.key_block, n)
    activations = tile * _activation_bytes(work)
    attention = _block_temporaries(work, key_block)
    # Per token in flight: hidden states in and out, gradient in and out, stashed attention output; two buffers each.
    in_flight = 2 * tile * (4 * spec.hidden_size + work.query_width) * work.element
    parts = [
        *_fixed_parts(work, device),
        *_weight_parts(work, plan.weights, device),
        *_key_value_parts(work, plan, key_block, device),
        Part(
            name="one key block's temporaries in attention",
            where=device,
            bytes=attention,
            formula=f"{key_block:,} keys × {_block_formula(work)}",
        ),
        Part(
            name="one tile's activations through one layer",
            where=device,
            bytes=activations,
            formula=f"{tile:,} tokens × {_activation_bytes(work):,} B ({_ACTIVATIONS})",
        ),
        _head_part(work, plan.loss_piece, activations + attention, device),
        Part(
            name="tiles in flight between the homes",
            where=device,
            bytes=in_flight,
            formula=f"2 buffers × {tile:,} tokens × "
            f"(4 × {spec.hidden_size:,} + {work.query_width:,}) × {work.element} B",
        ),
        *_home_parts(work, plan, tile),
    ]
    return _close(parts, device)


# --- the parts ---------------------------------------------------------------------------------------------


def _fixed_parts(work: Workload, device: Place) -> Iterator[Part]:
    if work.on_gpu:
        yield Part(name="CUDA context and libraries", where="gpu", bytes=CUDA_CONTEXT, formula="512 MiB, estimated")
    process = HOST_PROCESS if work.on_gpu else HOST_PROCESS_CPU
    yield Part(
        name="the training process itself", where="host", bytes=process, formula=f"{process // MIB} MiB, estimated"
    )
    tokens = 4 * work.repository_tokens
    yield Part(
        name="the token store",
        where="disk",
        bytes=tokens,
        formula=f"{work.repository_tokens:,} tokens × 4 B, memory-mapped",
    )
    yield Part(
        name="checkpoints of the adapter",
        where="disk",
        bytes=CHECKPOINTS_KEPT * 12 * work.lora_parameters,
        formula=f"{CHECKPOINTS_KEPT} × {work.lora_parameters:,} parameters × 12 B (value and Adam states)",
    )
    yield Part(
        name="LoRA weights, gradients and Adam states",
        where=device,
        bytes=LORA_BYTES * work.lora_parameters,
        formula=f"{work.lora_parameters:,} parameters × {LORA_BYTES} B (4 + 4 + 8, and 2 for the 16-bit copy)",
    )


def _weight_parts(work: Workload, weights: BaseWeights, device: Place) -> Iterator[Part]:
    spec, element = work.spec, work.element
    outside = spec.parameters - spec.layers * spec.layer_parameters
    yield Part(
        name="embeddings, head and last norm",
        where=device,
        bytes=outside * element,
        formula=f"{outside:,} parameters × {element} B ({'tied' if spec.tied_embeddings else 'not tied'})",
    )
    layers = spec.layers * spec.layer_parameters
    if weights == "nf4":
        quantised = spec.layers * spec.linear_parameters
        rest = layers - quantised
        yield Part(
            name="decoder layers, NF4",
            where=device,
            bytes=round(quantised * NF4_BITS / 8) + rest * element,
            formula=f"{quantised:,} weights × {NF4_BITS} bits + {rest:,} in norms × {element} B",
        )
        largest = max(linear.parameters for linear in spec.linears)
        yield Part(
            name="the largest matrix, unpacked to compute with",
            where=device,
            bytes=largest * element,
            formula=f"{largest:,} weights × {element} B",
        )
    elif weights == "streamed":
        yield Part(
            name="two decoder layers, streamed",
            where=device,
            bytes=2 * spec.layer_parameters * element,
            formula=f"2 × {spec.layer_parameters:,} parameters × {element} B",
        )
        yield Part(
            name="decoder layers at home",
            where="host",
            bytes=layers * element,
            formula=f"{layers:,} parameters × {element} B, pinned",
        )
    else:
        yield Part(
            name=f"decoder layers, {work.compute_type}",
            where=device,
            bytes=layers * element,
            formula=f"{layers:,} parameters × {element} B",
        )


def _key_value_parts(work: Workload, plan: StreamPlan, key_block: int, device: Place) -> Iterator[Part]:
    n, width, element = work.context, work.key_width, work.element
    shape = f"{n:,} tokens × {work.spec.kv_heads} heads × {work.spec.head_dim}"
    home: Place = device if plan.kv_home == "gpu" else "host"
    yield Part(
        name="keys and values of one layer",
        where=home,
        bytes=2 * n * width * element,
        formula=f"2 × {shape} × {element} B",
    )
    yield Part(name="their gradients, fp32", where=home, bytes=2 * n * width * 4, formula=f"2 × {shape} × 4 B")
    if plan.kv_home == "host" and work.on_gpu:
        yield Part(
            name="key blocks in flight",
            where="gpu",
            bytes=2 * 2 * key_block * width * (element + 4),
            formula=f"2 buffers × 2 × {key_block:,} keys × {width:,} × ({element} + 4) B",
        )


def _home_parts(work: Workload, plan: StreamPlan, tile: int) -> Iterator[Part]:
    """Hidden states, gradient stream and stash, wherever they live between the passes."""
    spec, n, element = work.spec, work.context, work.element
    home: Place = plan.hidden_home if work.on_gpu or plan.hidden_home == "disk" else "host"
    every = plan.checkpoint_every
    kept = stored_layers(spec.layers, every)
    # Quantised activations carry one fp32 scale for a block of 64.
    per_value = element if plan.activation_bits == 16 else plan.activation_bits / 8 + 4 / 64
    counted = f"{spec.layers} layers" if every == 1 else f"⌈{spec.layers} / {every}⌉ + {every} - 1 layers"
    yield Part(
        name="hidden states",
        where=home,
        bytes=round(kept * n * spec.hidden_size * per_value),
        formula=f"({counted}) × {n:,} tokens × {spec.hidden_size:,} × {per_value:g} B",
    )
    yield Part(
        name="gradient stream",
        where=home,
        bytes=n * spec.hidden_size * element,
        formula=f"{n:,} tokens × {spec.hidden_size:,} × {element} B",
    )
    if plan.stash:
        per_token = work.query_width * element + spec.heads * 4
        yield Part(
            name="stash: attention outputs and logsumexp",
            where=home,
            bytes=spec.layers * n * per_token,
            formula=f"{spec.layers} layers × {n:,} tokens × ({work.query_width:,} × {element} + {spec.heads} × 4) B",
        )
        if stashes_keys_values(spec):
            yield Part(
                name="stash: keys and values",
                where=home,
                bytes=spec.layers * n * 2 * work.key_width * element,
                formula=f"{spec.layers} layers × {n:,} tokens × 2 × {work.key_width:,} × {element} B",
            )
    if home == "disk":
        staged = 4 * tile * (spec.hidden_size + work.query_width) * element
        yield Part(
            name="tiles on their way to and from the disk",
            where="host",
            bytes=staged,
            formula=f"4 × {tile:,} tokens × ({spec.hidden_size:,} + {work.query_width:,}) × {element} B",
        )


def stashes_keys_values(spec: ModelSpec) -> bool:
    """Whether keys and values are kept beside the attention output: where the two are no larger than it."""
    return 2 * spec.kv_heads <= spec.heads


def stored_layers(layers: int, every: int) -> int:
    """Layer inputs that exist at once: every k-th layer's, and the k - 1 after one of them, computed again.

    The last layer's output is not among them: the gradient stream takes its place tile by tile.
    """
    return -(-layers // every) + min(every, layers) - 1


_ACTIVATIONS = "residual stream, norms, queries, keys, values, MLP, and their gradients"


def _activation_bytes(work: Workload) -> int:
    """Bytes a token that one decoder layer holds at the peak of its backward pass, with 16-bit adapters.

    Residual stream: layer input and the sum after attention, and for each of two norms its output and the fp32 copy
    that RMSNorm computes with: (2 + 2) values + 2 · 4 B. Attention: queries before and after RoPE, the output, and the
    gradients of output and queries: 5 values, + 4 B for the fp32 sum of query gradients; keys and values before and
    after RoPE: 4 values. MLP: gate, up, activation and their product, and three gradients of that width.
    """
    e, spec = work.element, work.spec
    residual = spec.hidden_size * (4 * e + 8)
    attention = work.query_width * (5 * e + 4) + work.key_width * 4 * e
    mlp = spec.intermediate_size * e * (7 if spec.gated_mlp else 4)
    return residual + attention + mlp


def _block_temporaries(work: Workload, key_block: int) -> int:
    """Gradients of one block's keys and values for each query head, their sums; copies of K and V where needed."""
    width = work.query_width if work.grouped_heads else 2 * work.query_width
    return 2 * key_block * (width + work.key_width) * work.element


def _block_formula(work: Workload) -> str:
    copies = "" if work.grouped_heads else "2 × "
    return f"2 × ({copies}{work.query_width:,} + {work.key_width:,}) × {work.element} B"


def _head_part(work: Workload, loss_piece: int, reused: int, device: Place) -> Part:
    """The head runs when no layer does, so it only adds what exceeds the memory that the layers' work leaves free."""
    piece = min(loss_piece, work.context)
    per_logit = 2 * work.element + 8
    needed = piece * work.spec.vocab_size * per_logit
    return Part(
        name="the head's pieces, beyond the layers' working space",
        where=device,
        bytes=max(0, needed - reused),
        formula=f"{piece:,} tokens × {work.spec.vocab_size:,} × {per_logit} B of logits and probabilities "
        f"− {reused:,} B",
    )


def _close(parts: list[Part], device: Place) -> Ledger:
    """Adds the allocator's slack on everything but the CUDA context and the process, which are not its."""
    own = sum(part.bytes for part in parts if part.where == device and part.bytes and part.name not in _NOT_ALLOCATED)
    slack = Part(
        name="allocator slack",
        where=device,
        bytes=round(ALLOCATOR_SLACK * own),
        formula=f"{ALLOCATOR_SLACK:.0%} of {own:,} B, estimated",
    )
    return Ledger(parts=tuple(part for part in (*parts, slack) if part.bytes))


_NOT_ALLOCATED = ("CUDA context and libraries", "the training process itself")
