"""Copies between a CUDA device and the host, on two side streams beside the compute stream.

All copies of the streamed step start in `begin_copy` and are awaited by `wait_for`. A test replaces both functions by
a simulation that runs every copy as early or as late as a device may (tests/support/side_streams.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


class CopyStreams:
    """The two side streams of one CUDA device, one for each direction."""

    def __init__(self, device: torch.device) -> None:
        self.to_device = torch.cuda.Stream(device)
        self.to_host = torch.cuda.Stream(device)


def copy_streams(device: torch.device) -> CopyStreams | None:
    """Makes the side streams of a device; None on a CPU, which is its own host."""
    return CopyStreams(device) if device.type == "cuda" else None


def begin_copy(
    stream: torch.cuda.Stream, pairs: Sequence[tuple[Tensor, Tensor]], after: Iterable[torch.cuda.Event] = ()
) -> torch.cuda.Event:
    """Starts to copy (target, source) pairs on a side stream, and returns the event of their completion.

    The copy runs at any time between this call and the wait for its event. Until then callers neither read nor write a
    target, and do not write a source. Tensors on the device may be freed at once.

    Args:
        stream: One of CopyStreams. Copies on one stream keep their order.
        pairs: Tensors of equal shape and dtype; one of each pair on the device, the other in pinned host memory.
        after: Copies on the other stream that must complete first. Work enqueued on the compute stream before this
            call always comes first.
    """
    stream.wait_stream(torch.cuda.current_stream())
    for event in after:
        stream.wait_event(event)
    with torch.cuda.stream(stream):
        for target, source in pairs:
            target.copy_(source, non_blocking=True)
        done: torch.cuda.Event = stream.record_event()
    for tensor in (tensor for pair in pairs for tensor in pair):
        if tensor.is_cuda:
            tensor.record_stream(stream)
    return done


def wait_for(event: torch.cuda.Event) -> None:
    """Makes the compute stream wait for the event, without blocking the CPU."""
    torch.cuda.current_stream().wait_event(event)
