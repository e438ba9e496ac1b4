"""What training every weight adds to the memory ledger and to the time model.

The optimiser works on fp32 weights (mixed precision, arXiv 1710.03740) with two states each (Adam, arXiv 1412.6980):
16 bytes a parameter beside the 16-bit ones that the model computes with (ZeRO, arXiv 1910.02054, section 3.1). They
live on the GPU, or on the host (ZeRO-Offload, arXiv 2101.06840).
"""

from __future__ import annotations

from collections.abc import Iterator

from engine.plan.parts import CHECKPOINTS_KEPT, Line, Place
from engine.plan.workload import Workload

UPDATE_BYTES = 30
"An update reads weight, gradient and both states, and writes all but the gradient, and the 16-bit copy."


def state_parts(work: Workload, device: Place) -> Iterator[Line]:
    """Weights, gradients and optimiser states in fp32, where they live, and the copies of them."""
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
        name="the state to go back to",
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
    if own:
        # A layer's sums wait for its last tile; whole windows, and a home elsewhere, hold those of all layers.
        widest = max(work.spec.layer_parameters, work.spec.vocab_size * work.spec.hidden_size)
        yield Line(
            name="gradients of the widest layer, as they come and in fp32",
            where=device,
            bytes=6 * widest,
            words=lambda: f"{widest:,} parameters × (2 + 4) B",
        )


def whole_window_part(work: Workload, device: Place) -> Line:
    """Whole windows come to all layers before any gradient goes home."""
    waiting = work.spec.parameters if work.master_home == "host" and work.element == 2 else 0
    return Line(
        name="gradients of all layers on their way home",
        where=device,
        bytes=4 * waiting,
        words=lambda: f"{waiting:,} parameters × 4 B",
    )


def update_seconds(work: Workload, *, memory: float, ram: float, link: float) -> tuple[float, str]:
    """Time of one update and of its gradients' way, and the formula. Of a window; several windows share an update.

    Args:
        work: What is trained.
        memory: Bytes a second of the memory that computes.
        ram: Of host memory beside a GPU.
        link: Between the two.
    """
    count = work.spec.parameters
    on_host = work.on_gpu and work.master_home == "host"
    rate = ram if on_host else memory
    seconds = UPDATE_BYTES * count / rate
    formula = f"{count:,} parameters × {UPDATE_BYTES} B at {rate / 1e9:.3g} GB/s"
    if on_host:
        seconds += 6 * count / link
        formula += f", and 6 B each between GPU and host at {link / 1e9:.3g} GB/s"
    return seconds, formula
