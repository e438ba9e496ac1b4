"""Memory and time of recurrent layers (Gated DeltaNet, Mamba2, short convolutions) in a streamed step."""

from __future__ import annotations

from collections.abc import Iterator

from engine.plan.ledger_lines import Line, Place, place_of
from engine.plan.stream_plan import StreamPlan
from engine.plan.workload import Workload

RULE_FORWARD = 74
RULE_BACKWARD = 196
"""Bytes per token and mixed value that a gated delta rule and its convolution move.

Measured on one H200 as the kernels' time in a step of the shapes of Qwen3.5-2B over 131,072 tokens: 0.61 s for the rule
and 0.43 s for the convolution of 18 layers, two passes forward and one back, at 4.8 TB/s (docs/benchmarks.md). The
division between the passes is estimated. Without flash-linear-attention transformers' own code takes several times as
long."""


def border_state_parts(work: Workload, plan: StreamPlan, device: Place) -> Iterator[Line]:
    """Lists the states that each recurrent layer begins a tile with, and those of the tile being computed.

    On the device two tiles' states arrive, one tile's are carried on, and two have gradients.
    """
    found = work.spec.recurrent
    tiles = -(-work.context // min(plan.tile, work.context))
    if found is None or tiles == 1:
        return
    each = found.state_values * 4 + found.conv_values * work.element
    yield Line(
        name="states of the recurrent layers at the tiles' borders",
        where=place_of(work, plan.hidden_home),
        bytes=found.layers * tiles * each,
        words=lambda: f"{found.layers} layers × {tiles:,} tiles × {each:,} B",
    )
    yield Line(name="states of a tile", where=device, bytes=5 * each, words=lambda: f"5 × {each:,} B")


def recurrence_bytes(work: Workload, forwards: float) -> float:
    """Returns the bytes that the recurrent rules of all layers move in so many forward passes and a backward pass."""
    found = work.spec.recurrent
    if found is None:
        return 0.0
    return found.layers * work.context * found.channels * (forwards * RULE_FORWARD + RULE_BACKWARD)
