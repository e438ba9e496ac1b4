"""What training every weight adds to the memory ledger and to the time model.

The optimiser works on fp32 weights (mixed precision, arXiv 1710.03740) with two states each (Adam, arXiv 1412.6980):
16 bytes a parameter beside the 16-bit ones that the model computes with (ZeRO, arXiv 1910.02054, section 3.1). They
live on the GPU, or on the host (ZeRO-Offload, arXiv 2101.06840).
"""

from __future__ import annotations

from collections.abc import Iterator

from engine.plan.ledger_lines import CHECKPOINTS_KEPT, Line, Place
from engine.plan.workload import Workload

STATE_TO_GO_BACK_TO = "the state to go back to"
SUM_BYTES = 12
"A gradient is written in 16 bits, read, and added to its fp32 sum."
WHOLE_SUM_BYTES = 8
"And where autograd adds up the pieces of a whole window's loss, in 16 bits."
UPDATE_BYTES = 30
"An update reads weight, gradient and both states, and writes all but the gradient, and the 16-bit copy."


def state_parts(work: Workload) -> Iterator[Line]:
    """Weights, gradients and optimiser states in fp32, where they live, and the copies of them.

    Gradients on their way there come and go (engine.plan.activations).
    """
    count = work.spec.parameters
    own = 0 if work.element == 4 else 4
    home: Place = "gpu" if work.master_home == "gpu" else "host"
    each = own + 12
    yield Line(
        name="fp32 weights, gradients and Adam states" if own else "gradients and Adam states",
        where=home,
        bytes=each * count,
        words=lambda: f"{count:,} parameters × {each} B ({'4 + ' if own else ''}4 + 8)",
    )
    yield Line(
        name=STATE_TO_GO_BACK_TO,
        where="host",
        bytes=12 * count,
        words=lambda: f"{count:,} parameters × 12 B (value and Adam states), a copy a few updates old",
    )
    yield Line(
        name="checkpoints of the weights",
        where="disk",
        bytes=(CHECKPOINTS_KEPT * 12 + work.element) * count,
        words=lambda: f"{count:,} parameters × ({CHECKPOINTS_KEPT} × 12 + {work.element}) B (and the result)",
    )


def update_seconds(work: Workload, *, memory: float, ram: float, link: float) -> tuple[float, str]:
    """Time of one update, and the formula. Of a window; several windows share an update.

    Args:
        work: What is trained.
        memory: Bytes a second of the memory that computes.
        ram: Of host memory beside a GPU.
        link: Between the two.
    """
    count, on_host = work.spec.parameters, masters_on_host(work)
    rate = ram if on_host else memory
    seconds = UPDATE_BYTES * count / rate
    formula = f"{count:,} parameters × {UPDATE_BYTES} B at {rate / 1e9:.3g} GB/s"
    if on_host:
        seconds += 2 * count / link
        formula += f", and 2 B each to the GPU at {link / 1e9:.3g} GB/s"
    return seconds, formula


def masters_on_host(work: Workload) -> bool:
    """Whether gradients have a way to go."""
    return work.on_gpu and work.master_home == "host"


def way_home_seconds(work: Workload, *, streamed: bool, link: float) -> tuple[float, str]:
    """Time that the gradients of one window take to the host, and the formula.

    They arrive in pinned memory that is kept (engine.models.gradient_home), so that the link is what counts.
    Measured for updates of one window: those of further ones are added up on the host, which is not in the formula.
    Where tiles are streamed, a table that is embedding and head at once goes twice.
    """
    twice = work.spec.vocab_size * work.spec.hidden_size if streamed and work.spec.tied_embeddings else 0
    count = work.spec.parameters + twice
    return 4 * count / link, f"{count:,} gradients × 4 B at {link / 1e9:.3g} GB/s"


def summing_seconds(
    work: Workload, *, tiles: int, pieces: int, memory: float, pieces_bytes: int = SUM_BYTES
) -> tuple[float, str]:
    """Time to add up the gradients of tiles, and of the loss's pieces for the head; and the formula."""
    table = work.spec.vocab_size * work.spec.hidden_size
    layers = work.spec.decoder_parameters
    moved = SUM_BYTES * tiles * (layers + table) + pieces_bytes * pieces * table
    return moved / memory, f"{tiles:,} tiles and {pieces:,} pieces, {moved:.3g} B at {memory / 1e9:.3g} GB/s"
