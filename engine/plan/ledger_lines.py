"""Lines of the memory ledger that are resident throughout a step, wherever they live, each with its formula.

Measured constants, as opposed to derived ones, are named here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal

import msgspec

from engine.models.attended import AttendedShape
from engine.models.spec import ModelSpec
from engine.plan.activations import Held
from engine.plan.step_passes import saves_kv
from engine.plan.stream_plan import EMBEDDED_AT_ONCE, BaseWeights, Home, StreamPlan, in_4_bits, streams
from engine.plan.window_ring import WindowRing, layers_of_ring
from engine.plan.workload import Workload

Place = Literal["gpu", "host", "disk"]

MIB = 1024**2
CUDA_CONTEXT = 850 * MIB
"CUDA context and loaded kernels, outside the allocator: 841 to 855 MiB on an H100. Smaller GPUs should take less."
HOST_PROCESS = 2048 * MIB
"Python, torch, transformers and the CUDA libraries: 1,875 MiB measured after a step; and the data loader."
HOST_PROCESS_CPU = 1024 * MIB
"Python, torch and transformers without CUDA. Estimate."
ALLOCATOR_SLACK = 0.04
"Share of all allocations that the caching allocator loses to rounding and fragmentation. Estimate."
HEAP_RETENTION = 1.0
"""Share of activations and logits that the C library's heap keeps on a CPU, in freed blocks that later ones do not fit.
A 135M model in windows of 1,024 kept 1.1 times as much after its first update, and took 5.16 GiB in 24 updates where
3.39 GiB were counted without this."""
NF4_BITS = 4.127
"Bits per weight: 4, and one 8-bit scale for 64 weights with its own second-level scale (QLoRA, arXiv 2305.14314)."
LORA_BYTES = 16
"Bytes per adapter parameter: fp32 value, gradient and two Adam states."
ROTARY_CACHE = 128 * MIB
"Rotary tables of all tiles stay resident if they fit in this (engine.streaming.positions)."
CHECKPOINTS_KEPT = 3
"Two kept, one being written."

CONTEXT = "CUDA context and libraries"
PROCESS = "the training process itself"
AT_HOME = "decoder layers at home"
READ_AHEAD = "two decoder layers, read ahead"
TABLE_AT_HOME = "table of the layers' own inputs, at home"
QUANTISING = "quantising, before the step's own buffers"
LOADING = "loading, before the step's own buffers"
NOT_ALLOCATED = (CONTEXT, PROCESS)
"""Names of lines that the allocator does not serve."""


class Line(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One ledger line. `words` renders its formula on demand, since a planner compares thousands of lines.

    A Struct is made ten times as fast as a dataclass. The garbage collector need not visit it, since no formula refers
    to its line.
    """

    name: str
    where: Place
    bytes: int
    words: Callable[[], str]


def fixed_parts(work: Workload, device: Place) -> Iterator[Line]:
    """Lists the lines that do not depend on the step layout, apart from the base weights."""
    if work.on_gpu:
        context = work.gpu_context or CUDA_CONTEXT
        place = "here" if work.gpu_context else "on an H100"
        yield Line(
            name=CONTEXT,
            where="gpu",
            bytes=context,
            words=lambda: f"{context // MIB:,} MiB, measured {place}",
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
    if work.master_home is not None:
        return
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


def weight_parts(
    work: Workload, weights: BaseWeights, device: Place, home: Literal["host", "disk"] = "host"
) -> Iterator[Line]:
    """Lists the base weights in their home between uses; `home` is that of streamed ones."""
    spec, element = work.spec, work.element
    table = work.host_table
    outside = spec.parameters - spec.decoder_parameters - table
    yield Line(
        name=TABLE_AT_HOME,
        where="host",
        bytes=table * element,
        words=lambda: f"{spec.vocab_size:,} tokens × {spec.layers} layers × {spec.layer_input:,} × {element} B",
    )
    rows = 2 * EMBEDDED_AT_ONCE * spec.layers * spec.layer_input if table else 0
    yield Line(
        name="its rows on their way to the GPU",
        where="host",
        bytes=rows * element,
        words=lambda: f"2 × {EMBEDDED_AT_ONCE:,} rows × {spec.layers} × {spec.layer_input:,} × {element} B, pinned",
    )
    yield Line(
        name="embeddings, head and last norm",
        where=device,
        bytes=outside * element,
        words=lambda: f"{outside:,} parameters × {element} B ({'tied' if spec.tied_embeddings else 'not tied'})",
    )
    quantised, largest = (spec.quantised_parameters, spec.linear_parameters) if in_4_bits(weights) else (0, 0)
    layers, words = _stored(work, spec.decoder_parameters, quantised)
    if streams(weights):
        layer, of_layer = _stored(work, spec.layer_parameters, largest)
        yield Line(
            name="two decoder layers, streamed", where=device, bytes=2 * layer, words=lambda: f"2 × ({of_layer()})"
        )
        if home == "host":
            yield Line(name=AT_HOME, where="host", bytes=layers, words=lambda: f"{words()}, pinned")
        else:
            yield Line(
                name=READ_AHEAD,
                where="host",
                bytes=2 * layer,
                words=lambda: f"2 × ({of_layer()}), pinned; {layers:,} B stay on the disk",
            )
    else:
        kind = "NF4" if quantised else work.compute_type
        yield Line(name=f"decoder layers, {kind}", where=device, bytes=layers, words=words)


def loading_part(work: Workload, weights: BaseWeights, later: int) -> Line:
    """Counts what loading needs beyond what the step holds in host memory later.

    Weights are read and quantised one by one (engine.models.four_bit_folder), and no other buffer exists yet. Where a
    table stays on the host, the rest of the model passes through it: in bf16 mapped to its files, else as a copy.

    Args:
        work: The model.
        weights: Storage of the base weights.
        later: Bytes that the step holds in host memory, without the process itself and the layers.
    """
    spec, needed, what = work.spec, 0, "one layer or an embedding in its own format"
    if in_4_bits(weights) and not spec.stored_in_4_bits:
        table = 0 if work.host_table else spec.layer_table  # which is counted where it stays
        needed = max(spec.layer_parameters, spec.vocab_size * spec.hidden_size, table) * work.element
    if work.host_table and not streams(weights) and (in_4_bits(weights) or work.compute_type != "bf16"):
        outside = spec.parameters - spec.decoder_parameters - work.host_table
        needed += stored_bytes(work, weights) + outside * work.element
        what = "the model on its way to the GPU"
    return Line(
        name=QUANTISING if in_4_bits(weights) else LOADING,
        where="host",
        bytes=max(0, needed - later),
        words=lambda: f"{what}, {needed:,} B - {later:,} B that come later",
    )


def stored_bytes(work: Workload, weights: BaseWeights) -> int:
    """Returns the bytes of all decoder layers in a storage of the base weights."""
    quantised = work.spec.quantised_parameters if in_4_bits(weights) else 0
    return _stored(work, work.spec.decoder_parameters, quantised)[0]


def _stored(work: Workload, parameters: int, quantised: int) -> tuple[int, Callable[[], str]]:
    """Returns the bytes of parameters of which some are in 4 bits, and the formula."""
    element, rest = work.element, parameters - quantised
    if not quantised:
        return parameters * element, lambda: f"{parameters:,} parameters × {element} B"
    others = "in norms and routers" if work.spec.sparse_layers else "in norms"
    return (
        round(quantised * NF4_BITS / 8) + rest * element,
        lambda: f"{quantised:,} weights × {NF4_BITS} bits + {rest:,} {others} × {element} B",
    )


def unpacked_parts(work: Workload, weights: BaseWeights, device: Place) -> Iterator[Line]:
    """Lists the matrices that the streamed step unpacks from 4 bits, one layer at a time for all its tiles."""
    if in_4_bits(weights):
        unpacked, element = work.spec.linear_parameters, work.element
        yield Line(
            name="one layer's matrices, unpacked",
            where=device,
            bytes=unpacked * element,
            words=lambda: f"{unpacked:,} weights × {element} B",
        )


def factor_parts(work: Workload, device: Place, *, layers: int) -> Iterator[Line]:
    """Lists the adapters as products take them; in 16 bits each factor is a rounded value and its remainder."""
    ready, each = layers * work.lora_parameters // work.spec.layers, 4
    yield Line(
        name="adapters ready to multiply",
        where=device,
        bytes=ready * each,
        words=lambda: f"{ready:,} parameters × {each} B ({layers} of {work.spec.layers} layers)",
    )


def key_value_parts(work: Workload, plan: StreamPlan, key_block: int, device: Place) -> Iterator[Line]:
    """Lists keys, values and their gradients of the layer being computed, and of a windowed layer beside it.

    The buffers of either are reused by the next layer of its kind and shape. A ring is small, and on the device
    whatever the home of whole layers. Keys and values that later layers attend to are kept until the step's end.
    """
    _, ring = layers_of_ring(work.spec, plan.tile, work.context)
    whole, ringed, lent = _cached_kinds(work.spec, rings=ring is not None)
    yield from _whole_layer_parts(work, plan, key_block, device, whole, _ONE_LAYER)
    yield from _whole_layer_parts(work, plan, key_block, device, lent, _LENT)
    if ring is not None:
        yield from _ring_parts(work, ring, ringed, device)


@functools.lru_cache
def _cached_kinds(
    spec: ModelSpec, *, rings: bool
) -> tuple[list[AttendedShape], list[AttendedShape], list[AttendedShape]]:
    """Returns a kind of each shape that is cached whole, one of each that is in rings, and each layer that lends."""
    kinds = spec.attentions
    own = [kind for kind in kinds if kind.use == "own"]
    ringed = [kind for kind in own if rings and kind.window is not None]
    lent = [kind for kind in kinds if kind.use == "lent" for _ in range(kind.layers)]
    return _of_each_shape(kind for kind in own if kind not in ringed), _of_each_shape(ringed), lent


_ONE_LAYER = "keys and values of one layer"
_LENT = "keys and values that later layers attend to"


def _of_each_shape(kinds: Iterable[AttendedShape]) -> list[AttendedShape]:
    """Returns a kind of each shape of what is stored: layers of the same shape share a cache."""
    return list({kind.stored: kind for kind in kinds}.values())


def _ring_parts(work: Workload, ring: WindowRing, kinds: Sequence[AttendedShape], device: Place) -> Iterator[Line]:
    values, element = ring.rows * sum(kind.stored_width for kind in kinds), work.element

    def shape() -> str:
        return f"{ring.places} tiles' last {ring.kept:,} tokens × {_a_token(kinds)}"

    yield Line(
        name="a windowed layer's keys and values",
        where=device,
        bytes=values * element,
        words=lambda: f"{shape()} × {element} B (window {ring.window:,}, whatever the context)",
    )
    yield Line(
        name="a windowed layer's gradients of them, fp32",
        where=device,
        bytes=values * 4,
        words=lambda: f"{shape()} × 4 B",
    )


def _whole_layer_parts(
    work: Workload, plan: StreamPlan, key_block: int, device: Place, kinds: Sequence[AttendedShape], name: str
) -> Iterator[Line]:
    if not kinds:
        return
    n, width, element = work.context, sum(kind.stored_width for kind in kinds), work.element
    home: Place = device if plan.kv_home == "gpu" else "host"

    def shape() -> str:
        return f"{n:,} tokens × {_a_token(kinds)}"

    yield Line(
        name=name,
        where=home,
        bytes=n * width * element,
        words=lambda: f"{shape()} × {element} B",
    )
    yield Line(name="their gradients, fp32", where=home, bytes=n * width * 4, words=lambda: f"{shape()} × 4 B")
    if plan.kv_home == "host" and work.on_gpu:
        yield Line(
            name="key blocks in flight",
            where="gpu",
            bytes=2 * key_block * width * (element + 4),
            words=lambda: f"2 buffers × {key_block:,} keys × {width:,} × ({element} + 4) B",
        )


def _a_token(kinds: Sequence[AttendedShape]) -> str:
    """Says what is stored of a token: latents, or keys and values."""
    words = [kind.words for kind in kinds]
    return words[0] if len(words) == 1 else f"({' + '.join(words)})"


def slot_parts(work: Workload, plan: StreamPlan, tile: int, device: Place) -> Iterator[Line]:
    """Lists the device buffers that tiles arrive in, and the tables that stay there for each position."""
    spec, element = work.spec, work.element
    stored = _stored_bytes(work, plan) * spec.hidden_width
    stashed = _stash_row(work, ringed=layers_of_ring(spec, plan.tile, work.context)[0] > 0) if plan.stash else 0
    a_token = round(stored) + (spec.hidden_width + spec.layer_input) * element + stashed
    yield Line(
        name="tiles in flight between the homes",
        where=device,
        bytes=2 * tile * a_token,
        words=lambda: f"2 buffers × {tile:,} tokens × {a_token:,} B (hidden states, gradients, stash)",
    )
    tables = 2 * spec.head_dim * element + 8  # and the positions themselves
    kept = work.context if tables * work.context <= ROTARY_CACHE else tile
    yield Line(name="rotary tables", where=device, bytes=tables * kept, words=lambda: f"{kept:,} tokens × {tables} B")


def _stash_row(work: Workload, *, ringed: bool) -> int:
    """Bytes of a token in the buffers that saved tensors come back through, one for each width.

    Keys and values have buffers of their own only where a ring's tiles are fetched one by one (`ringed`).
    """
    kinds = work.spec.attentions
    outputs, heads = {kind.output_width for kind in kinds}, {kind.heads for kind in kinds}
    keys = {
        kind.stored[0] * width
        for kind in kinds
        if ringed and kind.saves_kv and kind.window is not None
        for width in kind.stored[1:]
    }
    return (sum(outputs) + sum(keys)) * work.element + 4 * sum(heads)


def _stored_bytes(work: Workload, plan: StreamPlan) -> float:
    """Bytes of one stored hidden-state value. Quantised ones carry one fp32 scale per block of 64."""
    return work.element if plan.activation_bits == 16 else plan.activation_bits / 8 + 4 / 64


def home_parts(work: Workload, plan: StreamPlan, tile: int) -> Iterator[Line]:
    """Lists hidden states, gradient stream and saved attention output in their homes between the passes."""
    spec, n, element = work.spec, work.context, work.element
    home = place_of(work, plan.hidden_home)
    every = plan.checkpoint_every
    kept = stored_layers(spec.layers, every)
    per_value = _stored_bytes(work, plan)

    def counted() -> str:
        return f"{spec.layers} layers" if every == 1 else f"⌈{spec.layers} / {every}⌉ + {every} - 1 layers"

    yield Line(
        name="hidden states",
        where=home,
        bytes=round(kept * n * spec.hidden_width * per_value),
        words=lambda: f"({counted()}) × {n:,} tokens × {spec.hidden_width:,} × {per_value:g} B",
    )
    yield Line(
        name="gradient stream",
        where=place_of(work, plan.gradient_home),
        bytes=n * spec.hidden_width * element,
        words=lambda: f"{n:,} tokens × {spec.hidden_width:,} × {element} B",
    )
    yield Line(
        name="inputs of single layers",
        where=home,
        bytes=spec.layers * n * spec.layer_input * element,
        words=lambda: f"{spec.layers} layers × {n:,} tokens × {spec.layer_input:,} × {element} B",
    )
    if plan.stash:
        saves = tuple(saves_kv(kind, work, plan) for kind in spec.attentions)
        outputs, saved = _saved_bytes(spec, saves, element)
        for name, found in (("stash: attention outputs and logsumexp", outputs), ("stash: keys and values", saved)):
            yield Line(
                name=name,
                where=place_of(work, plan.stash_home),
                bytes=sum(layers * n * size for (size, _), layers in found.items()),
                words=functools.partial(_layers_in_words, found, n),
            )
    if plan.spills:
        yield staging_part(work, plan, tile)


def place_of(work: Workload, home: Home) -> Place:
    """Returns where a home is: without a GPU, what is on the compute device is in host memory."""
    return home if work.on_gpu or home == "disk" else "host"


def staging_part(work: Workload, plan: StreamPlan, tile: int) -> Line:
    """Host staging of homes on disk: at most four tiles of each kind of file, two being read and two being written."""
    spec, element, a_token = work.spec, work.element, 0
    if plan.hidden_home == "disk":
        a_token += round(_stored_bytes(work, plan) * spec.hidden_width)
        a_token += spec.layer_input * element
    if plan.gradient_home == "disk":
        a_token += spec.hidden_width * element
    if plan.stash and plan.stash_home == "disk":
        kinds = spec.attentions
        keys = max((max(kind.stored[1:]) * kind.stored[0] for kind in kinds if saves_kv(kind, work, plan)), default=0)
        a_token += max((kind.output_width * element + 4 * kind.heads for kind in kinds), default=0) + keys * element
    return Line(
        name="tiles on their way to and from the disk",
        where="host",
        bytes=4 * tile * a_token,
        words=lambda: f"4 × {tile:,} tokens × {a_token:,} B (a row of each kind of file)",
    )


@functools.lru_cache
def _saved_bytes(
    spec: ModelSpec, saves: tuple[bool, ...], element: int
) -> tuple[dict[tuple[int, str], int], dict[tuple[int, str], int]]:
    """Returns `_summed` of the saved attention outputs, and of the keys and values saved beside them."""
    kinds = spec.attentions
    outputs = _summed((kind.layers, *_output(kind, element)) for kind in kinds)
    saved = _summed(
        (kind.layers, kind.stored_width * element, f"{kind.words} × {element} B")
        for kind, is_saved in zip(kinds, saves, strict=True)
        if is_saved
    )
    return outputs, saved


def _output(kind: AttendedShape, element: int) -> tuple[int, str]:
    """Returns the bytes of a token's saved attention output and logsumexp, and their formula."""
    size = kind.output_width * element + 4 * kind.heads
    return size, f"({kind.output_width:,} × {element} + {kind.heads} × 4) B"


def _layers_in_words(found: Mapping[tuple[int, str], int], tokens: int) -> str:
    return " + ".join(f"{layers} layers × {tokens:,} tokens × {said}" for (_, said), layers in found.items())


def _summed(kinds: Iterable[tuple[int, int, str]]) -> dict[tuple[int, str], int]:
    """Returns the number of layers of each width, from their kinds: layers, bytes of a token, their formula."""
    found: dict[tuple[int, str], int] = {}
    for layers, size, said in kinds:
        found[size, said] = found.get((size, said), 0) + layers
    return found


def stored_layers(layers: int, every: int) -> int:
    """Number of layer inputs that exist at once: every k-th layer's, and k - 1 recomputed ones after one of them.

    The last layer's output is not among them: the gradient stream replaces it tile by tile.
    """
    return -(-layers // every) + min(every, layers) - 1


def in_words(held: Held) -> str:
    """Lists names with their bytes, as text."""
    return " + ".join(f"{name} {size:,}" for name, size in held if size)
