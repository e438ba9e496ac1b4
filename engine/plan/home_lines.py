"""Ledger lines of what tiles leave between the passes (hidden states, gradients, stash) and of its transfer buffers."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping

from engine.models.attended import AttendedShape
from engine.models.spec import ModelSpec
from engine.plan.ledger_lines import MIB, Line, Place, place_of
from engine.plan.step_passes import saves_kv
from engine.plan.stream_plan import StreamPlan
from engine.plan.window_ring import layers_of_ring
from engine.plan.workload import Workload

ROTARY_CACHE = 128 * MIB
"Rotary tables of all tiles stay resident if they fit in this (engine.streaming.positions)."


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
