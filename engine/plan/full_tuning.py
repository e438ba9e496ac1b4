"""Memory and time that full fine-tuning adds to the ledger and to the time model.

The optimiser works on fp32 master weights (mixed precision, arXiv 1710.03740) with two states each (Adam, arXiv
1412.6980). That takes 16 bytes per parameter beside the 16-bit weights that the model computes with (ZeRO, arXiv
1910.02054, section 3.1). They are resident on the GPU, or offloaded to the host (ZeRO-Offload, arXiv 2101.06840).
"""

from __future__ import annotations

from collections.abc import Iterator

from engine.plan.ledger_lines import CHECKPOINTS_KEPT, Line, Place
from engine.plan.workload import Workload

STATE_TO_GO_BACK_TO = "the state to go back to"
SUM_BYTES = 12
"Bytes per parameter to accumulate a gradient: written in 16 bits, read, and added to its fp32 sum."
WHOLE_SUM_BYTES = 8
"The same where autograd accumulates the loss chunks of a whole window, in 16 bits."
UPDATE_BYTES = 30
"Bytes per parameter of an update: reads weight, gradient, both states; writes weight, both states, the 16-bit copy."


def state_parts(work: Workload) -> Iterator[Line]:
    """Lists fp32 weights, gradients and optimiser states in their home, and the copies of them.

    Gradients in transit are peak candidates (engine.plan.activations).
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
    """Returns the time of one update and its formula. Several windows may share an update.

    Args:
        work: The workload.
        memory: Bytes a second of the compute device's memory.
        ram: Bytes a second of host memory, for a GPU's offloaded states.
        link: Bytes a second between host and GPU.
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
    """Whether gradients move from the GPU to the host."""
    return work.on_gpu and work.master_home == "host"


def way_home_seconds(work: Workload, *, streamed: bool, link: float) -> tuple[float, str]:
    """Returns the time to move the gradients of one window to the host, and its formula.

    They arrive in pinned memory that is kept (engine.models.gradient_home), so the link sets the time. Measured for
    updates of one window; the formula leaves out the host's additions for further windows. Where tiles are streamed, a
    tied embedding and head moves twice.
    """
    twice = work.spec.vocab_size * work.spec.hidden_size if streamed and work.spec.tied_embeddings else 0
    count = work.spec.parameters + twice
    return 4 * count / link, f"{count:,} gradients × 4 B at {link / 1e9:.3g} GB/s"


def summing_seconds(
    work: Workload, *, tiles: int, pieces: int, memory: float, pieces_bytes: int = SUM_BYTES
) -> tuple[float, str]:
    """Returns the time to accumulate the gradients of tiles, and of the loss chunks for the head; and its formula."""
    table = work.spec.vocab_size * work.spec.hidden_size
    layers = work.spec.decoder_parameters
    moved = SUM_BYTES * tiles * (layers + table) + pieces_bytes * pieces * table
    return moved / memory, f"{tiles:,} tiles and {pieces:,} pieces, {moved:.3g} B at {memory / 1e9:.3g} GB/s"
