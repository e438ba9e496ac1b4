"""Ledger lines of the base weights and adapters: at home, on their way, unpacked, and while they load."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

from engine.plan.ledger_lines import Line, Place
from engine.plan.stream_plan import EMBEDDED_AT_ONCE, BaseWeights, in_4_bits, streams
from engine.plan.workload import Workload

NF4_BITS = 4.127
"Bits per weight: 4, and one 8-bit scale for 64 weights with its own second-level scale (QLoRA, arXiv 2305.14314)."

AT_HOME = "decoder layers at home"
READ_AHEAD = "two decoder layers, read ahead"
TABLE_AT_HOME = "table of the layers' own inputs, at home"
QUANTISING = "quantising, before the step's own buffers"
LOADING = "loading, before the step's own buffers"


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
