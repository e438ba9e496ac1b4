"""ProcessGroup over torch.distributed.

It has two torch groups. Small objects go through gloo in host memory, where a rank may wait for hours (the run is
paused, a disk is full), and closed connections reveal a dead rank. Gradients, keys and values go through NCCL between
GPUs, with a timeout, because all ranks reach them at about the same time.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, distributed

from engine.errors.distributed import RANK_LOST
from engine.hardware.process_memory import memory_usage
from engine.hardware.rank_place import Ranks
from engine.protocol.events import Event, RankReported, RecoveryTaken, WarningRaised
from engine.protocol.wire import Envelope
from engine.runs.process_group import ProcessGroup

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup as TorchGroup


T = TypeVar("T")

_PATIENCE = timedelta(days=365)
"""Timeout of the group for objects; engine.launch.rank_watchdog detects dead ranks instead."""

REPORT_SECONDS = 2.0
"""Least time between two reports of the ranks."""

_OWN_WARNINGS = ("host-memory-low", "gpu-hot")
"""Codes of warnings that a single rank may raise."""

_LOST_WORDS = (
    "connection closed",
    "connection reset",
    "connection refused",
    "broken pipe",
    "socket",
    "timed out",
    "timeout",
    "nccl",
    "remote process",
    "gloo",
    "process group",
    "processgroup",
)


class TorchProcessGroup(ProcessGroup):
    """This process's rank in the initialised default process group.

    Args:
        device: The compute device of this rank.
        timeout_s: Timeout of collectives over tensors, in seconds.
        here: Number of ranks on this host; None for all.
        device_name: Display name of the device, whose number is 0 in every rank.
    """

    def __init__(
        self, device: torch.device, timeout_s: float, *, here: int | None = None, device_name: str = ""
    ) -> None:
        super().__init__()
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        self.ranks = Ranks(here=here or self.size, all=self.size)
        self._device_name = device_name or str(device)
        self.device = device
        self.notices: list[WarningRaised] = []
        "Warnings of a rank other than the first, sent with the next report."
        self.sent_bytes = 0
        "Bytes of gradients passed to collectives since the last report."
        backend = "nccl" if device.type == "cuda" else "gloo"
        self.tensors: TorchGroup = distributed.new_group(backend=backend, timeout=timedelta(seconds=timeout_s))
        self._objects: TorchGroup = distributed.new_group(backend="gloo", timeout=_PATIENCE)
        self._reported_at = time.monotonic()
        self._waited = 0.0
        self._lock = threading.Lock()

    def agree(self, value: Callable[[], T]) -> T:
        """See ProcessGroup."""
        box: list[Any] = [value() if self.leads else None]
        with self.waiting():
            distributed.broadcast_object_list(box, src=0, group=self._objects)
        return box[0]  # type: ignore[no-any-return]

    def total(self, values: list[float]) -> list[float]:
        """See ProcessGroup."""
        sums = torch.tensor(values, dtype=torch.float64)
        with self.waiting():
            distributed.all_reduce(sums, group=self._objects)
        return [float(value) for value in sums]

    def gather(self, value: T) -> list[T]:
        """See ProcessGroup."""
        found: list[Any] = [None] * self.size
        with self.waiting():
            distributed.all_gather_object(found, value, group=self._objects)
        return found

    def sum_tensor(self, tensor: Tensor) -> None:
        """Replaces a tensor of any shape, on this rank's device or in host memory, by the sum over all ranks.

        Raises:
            EliteError: RANK_LOST.
        """
        self.sent_bytes += tensor.numel() * tensor.element_size()
        with self.waiting():
            # Gradients of weights in host memory go through gloo, like objects.
            group = self.tensors if tensor.device.type == self.device.type else self._objects
            distributed.all_reduce(tensor, group=group)

    @contextlib.contextmanager
    def leader_first(self) -> Iterator[None]:
        """See ProcessGroup."""
        if not self.leads:
            self.agree(lambda: None)
        yield
        if self.leads:
            self.agree(lambda: None)

    def report(self, emit: Callable[[Event], None], step: int, seconds: float) -> None:
        """See ProcessGroup."""
        now = time.monotonic()
        if not self.agree(lambda: now - self._reported_at >= REPORT_SECONDS):
            return
        with self._lock:
            notices, self.notices = self.notices, []
        row = RankReported(
            rank=self.rank,
            step=step,
            host=socket.gethostname(),
            pid=os.getpid(),
            device=self._device_name,
            seconds=seconds,
            waited_seconds=self._waited,
            sent_bytes=self.sent_bytes,
            **{name: value for name, value in memory_usage(self.device).items() if name != "gpu_reserved"},
        )
        self._reported_at, self._waited, self.sent_bytes = now, 0.0, 0
        rows = self.gather((row, notices))
        if self.leads:
            for one, message in rows:
                emit(one)
                for notice in message:
                    emit(notice)

    def keep_notice(self, envelope: Envelope) -> None:
        """Keeps warnings that only this rank has met until the next report; others are the same in all ranks.

        It is a Listener.
        """
        event = envelope.event
        if isinstance(event, WarningRaised) and event.code in _OWN_WARNINGS:
            message = WarningRaised(code=event.code, text=f"rank {self.rank}: {event.text}", hint=event.hint)
        elif isinstance(event, RecoveryTaken) and event.what.startswith("re-planned"):
            message = WarningRaised(code="rank-re-planned", text=f"rank {self.rank}: {event.what}", hint=event.why)
        else:
            return
        with self._lock:
            self.notices.append(message)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Wraps a collective, counts its time as waiting, and turns the loss of a peer into a typed error.

        Raises:
            EliteError: RANK_LOST, if another rank is gone or silent.
        """
        began = time.monotonic()
        try:
            yield
        except RuntimeError as error:
            if is_lost_peer(error):
                problem = str(error).strip().splitlines()[0][:200]
                raise RANK_LOST(rank=self.rank, problem=problem) from error
            raise
        finally:
            self._waited += time.monotonic() - began


def is_lost_peer(error: BaseException) -> bool:
    """Whether a collective failed because another rank is gone or silent."""
    if isinstance(error, torch.OutOfMemoryError):
        return False
    if isinstance(error, distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _LOST_WORDS)
