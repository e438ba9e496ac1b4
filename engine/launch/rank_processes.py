"""Runs a function in several processes of one gloo group on this machine's CPU, and gathers the results."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from engine.launch.recipe_import import import_function


class ProcessFailedError(RuntimeError):
    """One of the processes raised, died, or did not return in time. The message has its traceback."""


def run_processes(function: Callable[..., Any], count: int, *arguments: Any, timeout: float = 300.0) -> list[Any]:
    """Runs `function(rank, count, *arguments)` on each rank, and returns the results in order of rank.

    Args:
        function: A module's function, which a new process can import; called with torch.distributed initialised.
        count: Number of processes.
        arguments: Further arguments, which are pickled.
        timeout: Seconds for the whole call.

    Raises:
        ProcessFailedError: a rank failed; the others are ended.
    """
    context = get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="elite-tui-") as folder:
        pipes = [context.Pipe(duplex=False) for _ in range(count)]
        # By name, so that a process silences libraries before it imports the module. Unpickling would import it first.
        name = f"{function.__module__}:{function.__qualname__}"
        processes = [
            context.Process(target=_rank, args=(pipes[rank][1], folder, name, rank, count, arguments), daemon=True)
            for rank in range(count)
        ]
        try:
            for process, (_, sender) in zip(processes, pipes, strict=True):
                process.start()
                sender.close()
            return _gather([receiver for receiver, _ in pipes], time.monotonic() + timeout)
        finally:
            for process, (receiver, _) in zip(processes, pipes, strict=True):
                receiver.close()
                if process.pid is not None:
                    process.join(timeout=5)
                    process.kill()
                    process.join()


def _gather(receivers: list[Connection], deadline: float) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(receivers):
        waiting = [receiver for rank, receiver in enumerate(receivers) if rank not in results]
        ready = wait(waiting, timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            raise ProcessFailedError("a process did not return in time")
        for receiver in ready:
            rank = receivers.index(receiver)  # type: ignore[arg-type]
            try:
                worked, value = pickle.loads(receivers[rank].recv_bytes())  # noqa: S301 - from a child of this process
            except EOFError:
                raise ProcessFailedError(f"process {rank} died without a word") from None
            if not worked:
                raise ProcessFailedError(f"process {rank}: {value}")
            results[rank] = value
    return [results[rank] for rank in range(len(receivers))]


def _rank(sender: Connection, folder: str, name: str, rank: int, count: int, arguments: tuple[Any, ...]) -> None:
    try:
        for library in ("bitsandbytes", "DeepSpeed"):
            logging.getLogger(library).setLevel(logging.ERROR)
        # The group computes on CPUs. PowerSGD's hook would synchronise with a visible GPU, and fail.
        hidden = {"CUDA_VISIBLE_DEVICES": ""}
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), **hidden}
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        import torch
        from torch import distributed

        torch.set_num_threads(1)
        distributed.init_process_group(
            "gloo", init_method=f"file://{Path(folder) / 'store'}", rank=rank, world_size=count
        )
        try:
            _send(sender, worked=True, value=import_function(name)(rank, count, *arguments))
        finally:
            distributed.destroy_process_group()
    except Exception:  # the parent raises it as ProcessFailedError
        _send(sender, worked=False, value=traceback.format_exc())


def _send(sender: Connection, *, worked: bool, value: Any) -> None:
    """Sends a result by value, because multiprocessing would share tensors in memory that ends with this process."""
    with contextlib.suppress(BrokenPipeError):  # the parent has timed out
        sender.send_bytes(pickle.dumps((worked, value)))
