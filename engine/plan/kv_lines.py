"""Ledger lines of keys, values and their gradients, whole layers' or in rings of a window."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence

from engine.models.attended import AttendedShape
from engine.models.spec import ModelSpec
from engine.plan.ledger_lines import Line, Place
from engine.plan.stream_plan import StreamPlan
from engine.plan.window_ring import WindowRing, layers_of_ring
from engine.plan.workload import Workload


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
