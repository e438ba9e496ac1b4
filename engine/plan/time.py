"""The time model: the time of one window, as named parts with their formulas.

Each part is work divided by a rate of engine/plan/speeds.py. The number of memory passes was fitted to the steps of
benchmarks/results/memory-h100.json.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from engine.hardware.measured import correction_key
from engine.models.loss_chunk import loss_chunk
from engine.plan.full_tuning import (
    SUM_BYTES,
    WHOLE_SUM_BYTES,
    masters_on_host,
    summing_seconds,
    update_seconds,
    way_home_seconds,
)
from engine.plan.recurrent import recurrence_bytes
from engine.plan.sequence import LINK_SHARE, exchange_bytes, repeated_flops
from engine.plan.speeds import ATTENTION_BACKWARD, Speeds
from engine.plan.step_passes import graphs_kept, keys_met, refilled, repeated_layers, tiles_of
from engine.plan.stream_plan import BaseWeights, StreamPlan, in_4_bits
from engine.plan.transfers import moved_by, paged_layers, table_rows
from engine.plan.weight_lines import NF4_BITS
from engine.plan.workload import Workload
from engine.quantities import format_timing

FUSED_PASSES, PLAIN_PASSES, SERVED_PASSES = 6, 22, 18
"""Times that a layer's activations cross the GPU's memory in a streamed step, outside matrix products. The last: where
kernels serve recurrent layers, fitted to a step of Qwen3.5-2B's shapes over 131,072 tokens (docs/benchmarks.md)."""
ADAPTER_PASSES = 6
"The same in a window computed whole, per adapter input: to fp32 and back, in forward, recompute and backward."
EXPERT_PASSES = 6
"The same of the rows that are copied for a token's experts, in each pass of a layer forward, again and backward."
STREAMED_LOGIT_BYTES, WHOLE_LOGIT_BYTES = 11, 90
"Bytes of GPU memory traffic per logit: a kernel that writes the gradient in place; autograd with checkpointing."
OVERLAP, PAGE_OVERLAP = 0.8, 0.5
"""Share of the transfers that overlaps computing: of hidden states, which are prefetched one tile ahead; of blocks of
keys and their gradients, where only the next block is in flight while one is computed."""

FORWARD_CALLS, BACKWARD_CALLS, LAYER_CALLS = 450, 900, 1200
"""Kernels that Python launches for one tile through one layer: forward; recompute and backward; and for a whole
window's layer, forward, recompute and backward. Counted in units of the smallest kernel, with their own work included.
Where launches alone set the time, a tile took 3.5 to 6 ms forward and 6.2 to 10.2 ms backward."""
LOSS_CALLS = 160
"The same per loss chunk of the streamed step: 1.6 to 2 ms."
ENCODED_CALLS = 200
"Additional launches where hidden states are stored in fewer bits."
PAGE_CALLS = 60
"Additional launches per key block that a tile fetches from its home."

UPDATE = "updating every weight"


@dataclass(frozen=True, kw_only=True)
class TimePart:
    """One line of the time model."""

    name: str
    seconds: float
    formula: str
    factor: float = 1.0
    "Measured over modelled seconds, of a correction by past runs or by a probe."


def whole_sequence_time(
    work: Workload, weights: BaseWeights, speeds: Speeds, *, recompute: bool = True
) -> tuple[TimePart, ...]:
    """Models one whole window: every layer runs forward, its recompute if any, and backward."""
    forwards = 2 if recompute else 1
    matrices = work.spec.layers * (3 if recompute else 2)
    parts = [
        *_attention_parts(work, speeds, forwards=forwards),
        *_matrix_parts(work, speeds, forwards=forwards, head_products=3),
        _logits_part(work, speeds, WHOLE_LOGIT_BYTES),
        *_unpacking_parts(work, weights, speeds, passes=forwards + 1),
        _elementwise_part(work, speeds, FUSED_PASSES if work.fused_kernels else PLAIN_PASSES),
        *_adapter_parts(work, speeds),
        *_recurrence_parts(work, speeds, forwards),
        *_experts_parts(work, speeds, forwards),
        *_table_parts(work, speeds),
    ]
    pieces = -(-work.context // loss_chunk(work.spec.vocab_size))
    parts += _summing_parts(work, speeds, tiles=1, pieces=pieces - 1, pieces_bytes=WHOLE_SUM_BYTES)
    calls = matrices / 3 * LAYER_CALLS
    found = _with_launches(parts, [(sum(part.seconds for part in parts), calls)], speeds)
    return _corrected((*found, *_update_parts(work, speeds, streamed=False)), work, weights, speeds, streamed=False)


def streamed_time(work: Workload, plan: StreamPlan, speeds: Speeds) -> tuple[TimePart, ...]:
    """Models one exact streamed step: forward, loss, and for each layer in reverse the backward pass."""
    spec, n = work.spec, work.context
    tiles = tiles_of(work, plan)
    kept = graphs_kept(work, plan) / spec.layers
    again = repeated_layers(spec.layers, plan.checkpoint_every) / spec.layers
    attention_forwards = 1 if plan.stash else 2 + again - kept
    forwards = 2 + again - kept
    loss = [
        *_matrix_parts(work, speeds, forwards=0, head_products=2)[1:],
        _logits_part(work, speeds, STREAMED_LOGIT_BYTES if work.fused_loss else WHOLE_LOGIT_BYTES),
    ]
    layers = [
        *_attention_parts(work, speeds, forwards=attention_forwards),
        _matrix_parts(work, speeds, forwards=forwards, refill=_refilled_width(work, plan), head_products=0)[0],
        *_unpacking_parts(work, plan.weights, speeds, passes=forwards + 1),
        _elementwise_part(work, speeds, _streamed_passes(work)),
        _prefix_part(work, plan, speeds),
        *_expansion_parts(work, speeds, tiles, forwards=attention_forwards),
        *_recurrence_parts(work, speeds, forwards),
        *_experts_parts(work, speeds, forwards),
        *_summing_parts(work, speeds, tiles=tiles, pieces=-(-n // min(plan.loss_piece, n))),
    ]
    busy = sum(part.seconds for part in layers)
    forward = busy * 0.25 if plan.stash else busy * 0.3
    passes = spec.layers * tiles
    more = ENCODED_CALLS if plan.activation_bits < 16 else 0
    if plan.kv_home == "host":
        # A tile attends to half of all blocks, on average.
        more += round(PAGE_CALLS * max(1.0, n / plan.key_block / 2) * paged_layers(work, plan) / spec.layers)
    stages = [
        (forward, passes * (FORWARD_CALLS + more)),
        (sum(part.seconds for part in loss), -(-n // min(plan.loss_piece, n)) * LOSS_CALLS),
        (busy - forward, passes * (BACKWARD_CALLS + more + (again - kept) * FORWARD_CALLS)),
    ]
    parts = [*layers[:3], *loss, *layers[3:]]
    moved = moved_by(work, plan)
    tiles_seconds, pages = moved.seconds(plan, speeds)
    transfers = tiles_seconds + pages
    # Overlapped transfers are free up to the time that the GPU computes or waits for launches; the rest, and all beyond
    # that time, is waited for.
    hidden = OVERLAP * tiles_seconds + PAGE_OVERLAP * pages
    span = sum(max(computing, calls * speeds.launch) for computing, calls in (stages[0], stages[2]))
    waited = transfers - hidden * min(1.0, span / transfers) if transfers else 0.0
    if waited:
        share = hidden / transfers
        formula = f"{format_timing(transfers)} of transfers, of which {share:.0%} hides behind "
        formula += f"{format_timing(span)} of computing; {moved.words}"
        parts.append(TimePart(name="waiting for transfers", seconds=waited, formula=formula))
    parts += _exchange_parts(work, speeds, sum(part.seconds for part in layers[:2]))
    parts += _table_parts(work, speeds)
    found = (*_with_launches(parts, stages, speeds), *_update_parts(work, speeds, streamed=True))
    return _corrected(found, work, plan.weights, speeds, streamed=True)


def _streamed_passes(work: Workload) -> int:
    if work.fused_kernels:
        return FUSED_PASSES
    return SERVED_PASSES if work.recurrent_kernels and work.spec.recurrent is not None else PLAIN_PASSES


def total_seconds(parts: tuple[TimePart, ...]) -> float:
    """Sums the seconds of one window."""
    return sum(part.seconds for part in parts)


def attention_flops(work: Workload) -> float:
    """Returns the operations of one forward pass of attention, over all layers."""
    return sum(flops_by_head_size(work).values())


def flops_by_head_size(work: Workload) -> Mapping[int, float]:
    """Returns the operations of one forward pass of attention: 4 · pairs · heads · head_dim per layer, by head_dim.

    Causal: n²/2 pairs; with a sliding window of w tokens n·w − w²/2.
    """
    n, spec = work.context, work.spec
    pairs = n * n / 2
    window = min(spec.sliding_window or n, n)
    windowed = n * window - window * window / 2
    full = max(0, spec.attending_layers - spec.windowed_layers)
    # With sequence parallelism `context` is a rank's part, and the sequence is `ranks` times as long.
    if not spec.attended:
        return {spec.head_dim: 4 * work.query_width * (full * pairs * work.ranks + spec.windowed_layers * windowed)}
    found: dict[int, float] = defaultdict(float)
    for kind in spec.attended:
        met = pairs * work.ranks if kind.window is None else windowed
        found[kind.key_dim] += 2 * kind.layers * kind.heads * (kind.key_dim + kind.value_dim) * met
    return found


def _attention_parts(work: Workload, speeds: Speeds, forwards: float) -> list[TimePart]:
    flops = attention_flops(work)
    forward, backward = forwards * flops, ATTENTION_BACKWARD * flops
    return [
        TimePart(
            name="attention, forward",
            seconds=forward / speeds.attention_forward,
            formula=f"{forwards:g} × {flops:.3g} operations at {speeds.attention_forward / 1e12:.3g} TFLOP/s",
        ),
        TimePart(
            name="attention, backward",
            seconds=backward / speeds.attention_backward,
            formula=f"{ATTENTION_BACKWARD} × {flops:.3g} operations at {speeds.attention_backward / 1e12:.3g} TFLOP/s",
        ),
    ]


def _matrix_parts(
    work: Workload, speeds: Speeds, forwards: float, *, head_products: int, refill: float = 0.0
) -> list[TimePart]:
    """Frozen weights need one backward product, for their inputs' gradient; trained weights need two.

    `refill`: outputs that are projected once more for the backward pass, summed over layers.
    """
    spec, n = work.spec, work.context
    trains_all = work.master_home is not None
    units = forwards + (2 if trains_all else 1)
    head_products += 1 if head_products and trains_all else 0
    weights = spec.multiplied_parameters
    # Each adapter matrix: the forward products, and two backward ones, for its input and for itself.
    adapters = work.lora_parameters if work.multiplied_lora is None else work.multiplied_lora
    flops = 2.0 * n * (units * weights + (units + 1) * adapters)
    flops += 2.0 * n * spec.hidden_size * refill
    head = head_products * 2.0 * n * spec.vocab_size * spec.hidden_size
    return [
        TimePart(
            name=name,
            seconds=operations / rate,
            formula=f"{operations:.3g} operations at {rate / 1e12:.3g} TFLOP/s",
        )
        for name, operations, rate in (("linear layers", flops, speeds.matrix), ("the head", head, speeds.head))
    ]


def _logits_part(work: Workload, speeds: Speeds, a_logit: int) -> TimePart:
    logits = work.context * work.spec.vocab_size
    return TimePart(
        name="cross-entropy",
        seconds=logits * a_logit / speeds.memory,
        formula=f"{logits:.3g} logits × {a_logit} B at {speeds.memory / 1e9:.3g} GB/s",
    )


def _unpacking_parts(work: Workload, weights: BaseWeights, speeds: Speeds, passes: float) -> list[TimePart]:
    """NF4 weights are unpacked to the compute type each time they are used."""
    if not in_4_bits(weights):
        return []
    moved = passes * work.spec.quantised_parameters * (NF4_BITS / 8 + work.element)
    formula = f"{passes:,.0f} passes, {moved:.3g} B at {speeds.memory / 1e9:.3g} GB/s"
    return [TimePart(name="unpacking 4-bit weights", seconds=moved / speeds.memory, formula=formula)]


def _elementwise_part(work: Workload, speeds: Speeds, passes: int) -> TimePart:
    values = 8 * work.spec.hidden_size + 6 * work.query_width + 7 * work.spec.mlp_width
    moved = passes * values * work.element * work.spec.layers * work.context
    return TimePart(
        name="norms, rotary embedding, activations",
        seconds=moved / speeds.memory,
        formula=f"{passes} passes, {moved:.3g} B at {speeds.memory / 1e9:.3g} GB/s",
    )


def _experts_parts(work: Workload, speeds: Speeds, forwards: float) -> list[TimePart]:
    """Tokens are copied for each of their experts, and their outputs are gathered and summed."""
    spec = work.spec
    if not spec.sparse_layers:
        return []
    passes = EXPERT_PASSES * (forwards + 1)
    moved = passes * spec.experts_per_token * spec.hidden_size * work.element * spec.sparse_layers * work.context
    formula = f"{passes:g} passes, {moved:.3g} B at {speeds.memory / 1e9:.3g} GB/s"
    return [TimePart(name="rows in order of experts", seconds=moved / speeds.memory, formula=formula)]


def _update_parts(work: Workload, speeds: Speeds, *, streamed: bool) -> list[TimePart]:
    """Models the update of every weight; an adapter's is negligible."""
    if work.master_home is None:
        return []
    parts = []
    if masters_on_host(work):
        seconds, formula = way_home_seconds(work, streamed=streamed, link=speeds.link)
        parts.append(TimePart(name="gradients on their way home", seconds=seconds, formula=formula))
    seconds, formula = update_seconds(work, memory=speeds.memory, ram=speeds.ram, link=speeds.link)
    return [*parts, TimePart(name=UPDATE, seconds=seconds, formula=formula)]


def _summing_parts(
    work: Workload, speeds: Speeds, *, tiles: int, pieces: int, pieces_bytes: int = SUM_BYTES
) -> list[TimePart]:
    """Models the accumulation of trained weights' gradients."""
    if work.master_home is None:
        return []
    seconds, formula = summing_seconds(
        work, tiles=tiles, pieces=pieces, memory=speeds.memory, pieces_bytes=pieces_bytes
    )
    return [TimePart(name="summing gradients", seconds=seconds, formula=formula)]


def _adapter_parts(work: Workload, speeds: Speeds) -> list[TimePart]:
    if not work.lora_parameters:
        return []
    moved = ADAPTER_PASSES * work.spec.adapted_width * work.element * work.context
    formula = f"{ADAPTER_PASSES} passes, {moved:.3g} B at {speeds.memory / 1e9:.3g} GB/s"
    return [TimePart(name="adapters' casts and sums", seconds=moved / speeds.memory, formula=formula)]


def _recurrence_parts(work: Workload, speeds: Speeds, forwards: float) -> list[TimePart]:
    if work.spec.recurrent is None:
        return []
    moved = recurrence_bytes(work, forwards)
    formula = f"{forwards:g} forward passes and one backward, {moved:.3g} B at {speeds.memory / 1e9:.3g} GB/s"
    return [TimePart(name="recurrent rules", seconds=moved / speeds.memory, formula=formula)]


def _table_parts(work: Workload, speeds: Speeds) -> list[TimePart]:
    """Models rows that the CPU gathers and sends while the GPU waits: it reads and writes each, and copies it."""
    rows = table_rows(work)
    if not rows:
        return []
    formula = f"{rows:.3g} B, twice at {speeds.ram / 1e9:.3g} GB/s and once at {speeds.link / 1e9:.3g} GB/s"
    seconds = 2 * rows / speeds.ram + rows / speeds.link
    return [TimePart(name="looking up the layers' own inputs on the host", seconds=seconds, formula=formula)]


def _exchange_parts(work: Workload, speeds: Speeds, attention: float) -> list[TimePart]:
    """Models the exchange between ranks that share the window; the ring's messages overlap attention."""
    if work.ranks == 1:
        return []
    flops, (beside, between), rate = repeated_flops(work), exchange_bytes(work), work.rank_link * LINK_SHARE
    waited = max(0.0, beside / rate - attention) + between / rate
    return [
        TimePart(
            name="products before attention, once more",
            seconds=flops / speeds.matrix,
            formula=f"{flops:.3g} operations at {speeds.matrix / 1e12:.3g} TFLOP/s",
        ),
        TimePart(
            name="waiting for other ranks' keys and values",
            seconds=waited,
            formula=f"{beside:.3g} B beside attention and {between:.3g} B between, at {rate / 1e9:.3g} GB/s",
        ),
    ]


def _refilled_width(work: Workload, plan: StreamPlan) -> float:
    """Returns the values of keys and values that layers compute again, summed over layers."""
    return sum(each.computed * each.kind.stored_width for each in refilled(work, plan))


def _prefix_part(work: Workload, plan: StreamPlan, speeds: Speeds) -> TimePart:
    """Every tile's backward adds to the fp32 key and value gradients of all tiles before it, or of its window."""
    tile, a_value = min(plan.tile, work.context), 2 * 4 + work.element
    met = [(kind, kind.layers * keys_met(work.context, tile, kind.window)) for kind in work.spec.attentions]
    moved = sum(keys * kind.stored_width for kind, keys in met) * a_value
    widths = " + ".join(f"{keys:.3g} keys met × {kind.stored_width:,}" for kind, keys in met)
    return TimePart(
        name="sums of key and value gradients",
        seconds=moved / speeds.memory,
        formula=f"({widths or 'none met'}) × {a_value} B, at {speeds.memory / 1e9:.3g} GB/s",
    )


def _expansion_parts(work: Workload, speeds: Speeds, tiles: int, forwards: float) -> list[TimePart]:
    """Models the expansion of earlier tokens' latents: for every tile again, with its gradient in the backward pass."""
    spec, latent = work.spec, work.spec.latent
    if latent is None:
        return []
    earlier = spec.attending_layers * (tiles - 1) * work.context / 2
    products = forwards + (3 if work.master_home is not None else 2)
    flops = 2.0 * products * earlier * latent.rank * latent.expanded
    # Keys are put together from two parts, values are filled up, and so are their gradients.
    moved = (3 * forwards + 6) * earlier * spec.heads * spec.head_dim * work.element * 2
    return [
        TimePart(
            name="expanding latents",
            seconds=flops / speeds.matrix + moved / speeds.memory,
            formula=f"{flops:.3g} operations at {speeds.matrix / 1e12:.3g} TFLOP/s, and {moved:.3g} B "
            f"at {speeds.memory / 1e9:.3g} GB/s",
        )
    ]


def _with_launches(parts: list[TimePart], stages: list[tuple[float, float]], speeds: Speeds) -> tuple[TimePart, ...]:
    """Adds the GPU's wait for launches. A stage is (seconds of computing, number of launches)."""
    waited = sum(max(0.0, calls * speeds.launch - computing) for computing, calls in stages)
    total = sum(calls for _, calls in stages)
    formula = f"{total:,.0f} operations × {speeds.launch * 1e6:.3g} µs, beyond the computing that they overlap"
    return (*parts, TimePart(name="waiting for operations to be started", seconds=waited, formula=formula))


def _corrected(
    parts: tuple[TimePart, ...], work: Workload, weights: BaseWeights, speeds: Speeds, *, streamed: bool
) -> tuple[TimePart, ...]:
    """Adds the correction, up or down, that past runs or a probe of this model on this machine found."""
    precision = "nf4" if in_4_bits(weights) else work.compute_type
    key = correction_key(work.spec.name, precision, streamed=streamed)
    # Whole runs say more than a probe's one tile. A layout that no run had is held to be off as those were that did:
    # else every correction would only move the choice to what has never been measured.
    factor, by = speeds.past_runs.get(key), "past runs"
    alike = [value for name, value in speeds.past_runs.items() if name.startswith(f"{work.spec.name}, ")]
    if factor is None and alike and key not in speeds.corrections:
        factor = statistics.median(alike)
    if factor is None:
        factor, by = speeds.corrections.get(key), "a probe"
    if factor is None:
        return parts
    found = sum(part.seconds for part in parts)
    how = "found by `engine probe`" if by == "a probe" else "as past runs of this model took here"
    formula = f"{format_timing(found)} × {factor - 1:+.0%}, {how}"
    return (*parts, TimePart(name=f"correction by {by}", seconds=(factor - 1) * found, formula=formula, factor=factor))
