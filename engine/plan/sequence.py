"""Cost of sharing a window over ranks (engine.distributed): memory, time and bytes of a layer's exchange.

`Workload.context` is here one rank's part of the window.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.plan.ledger_lines import Line, Place

if TYPE_CHECKING:
    from engine.plan.workload import Workload

LINK_SHARE = 0.7
"Share of a link's rate that messages between ranks reach. Assumed."


def exchange_lines(work: Workload, device: Place) -> list[Line]:
    """Lists one layer's tensors while the ranks exchange, in the backward pass, which holds the most.

    Queries, output and its gradient in the compute type, the queries' gradient in fp32; keys and values three times
    (own, held, arriving), their gradients three times in fp32 (held, arriving, this rank's part); logsumexp.
    """
    n, q, kv, e = work.context, work.query_width, 2 * work.key_width, work.element
    queries, keys = n * q * (3 * e + 4) + 4 * n * work.spec.heads, n * kv * 3 * (e + 4)
    return [
        Line(
            name="queries, output and gradients of one layer",
            where=device,
            bytes=queries,
            words=lambda: f"{n:,} tokens × ({q:,} × (3 × {e} + 4) + 4 × {work.spec.heads}) B",
        ),
        Line(
            name="keys, values and gradients on their way round",
            where=device,
            bytes=keys,
            words=lambda: f"{n:,} tokens × {kv:,} × 3 × ({e} + 4) B",
        ),
    ]


def exchange_bytes(work: Workload) -> tuple[float, float]:
    """Returns the bytes that a rank sends per window: overlapping attention (ring), before or after it (Ulysses)."""
    n, q, kv, e, ranks = work.context, work.query_width, 2 * work.key_width, work.element, work.ranks
    if work.exchange == "ring":
        forward = (ranks - 1) * n * kv * e
        backward = forward + ranks * n * kv * 4
        return work.spec.layers * (forward + backward), 0.0
    away = (ranks - 1) / ranks
    forward = n * (2 * q * e + kv * e + 4 * work.spec.heads)
    backward = n * (3 * q * e + kv * e + 4 * work.spec.heads + 4 * (q + kv))
    return 0.0, away * work.spec.layers * (forward + backward)


def repeated_flops(work: Workload) -> float:
    """Returns the operations before attention that a rank repeats in each direction, since a layer runs in two legs."""
    a_token = work.spec.hidden_size * (work.query_width + 2 * work.key_width)
    return 2.0 * 2.0 * work.context * work.spec.layers * a_token
