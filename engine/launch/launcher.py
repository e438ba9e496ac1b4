"""Starts the training process of a run.

The process is `spawn`ed, because a fork of a program with threads (every Textual app) or CUDA is not safe. It shares
only two queues with its launcher, and outlives it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.process
import sys
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from typing import TYPE_CHECKING

from engine.errors.runs import RUN_STILL_ACTIVE
from engine.launch import child
from engine.launch.handle import RunHandle
from engine.launch.signals import block_stop_signals, restore_signals
from engine.plan.strategy import is_distributed
from engine.runs.journal import next_seq
from engine.runs.process_record import ProcessRecord, write_record
from engine.runs.run_directory import RunDirectory
from engine.runs.run_summary import ACTIVE

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

    from engine.config import RunConfig

RECIPE = "engine.recipes.fine_tune:train"
"""Recipe that the training process calls with its TrainingSession."""

SUPERVISED = "engine.launch.supervisor:train"
"""Recipe for a run of several ranks."""

_QUEUE_EVENTS = 1000
_START_TIMEOUT_S = 60.0


def launch(config: RunConfig, *, resume: RunDirectory | None = None, recipe: str = RECIPE) -> RunHandle:
    """Starts or resumes a run, and returns once its process is independent.

    May be called in any thread, even within a running Textual app.

    Args:
        config: Configuration, checked by `preflight.check`. A resumed run may change some fields of its own
            (engine.runs.resume_changes), and then keeps the changes.
        resume: The run to resume; None creates a new one.
        recipe: "module:function" to call in the process instead of the real training. Tests pass a short one.

    Raises:
        EliteError: OUTPUT_UNWRITABLE, OUTPUT_FULL or RUN_STILL_ACTIVE.
    """
    run = resume or RunDirectory.create(config)
    if recipe == RECIPE and is_distributed(config):
        recipe = SUPERVISED
    context = multiprocessing.get_context("spawn")
    with run.launching():
        if resume and (status := run.status()) in ACTIVE:
            raise RUN_STILL_ACTIVE(run=run.id, status=status)
        if resume and config != run.load_config():
            run.write_config(config)
        first_seq = next_seq(run.journal_path)
        _ensure_tracker()
        events = context.Queue(_QUEUE_EVENTS)
        commands = context.SimpleQueue()
        is_up, ready = context.Pipe(duplex=False)
        process = context.Process(
            target=child.main,
            args=(str(run.path), config, resume is not None, recipe, events, commands, ready),
            name=f"elite-{run.id}",
        )
        _start(process)
        # The process may already have ended, which the handle reports; and it writes the same record.
        with contextlib.suppress(OSError):
            write_record(run.process_path, ProcessRecord.of_process(process.pid or 0, first_seq))
    ready.close()
    # This process must not exit before the child has opened the queues by name, because its exit removes the names.
    wait([is_up], timeout=_START_TIMEOUT_S)
    is_up.close()
    return RunHandle(run, process=process, events=events, commands=commands, first_seq=first_seq)


def _start(process: SpawnProcess) -> None:
    # A Ctrl-C before the child has installed its handlers must be deferred, not kill it.
    mask = block_stop_signals()
    try:
        process.start()
    finally:
        restore_signals(mask)
    # multiprocessing joins its children when the interpreter exits, but this child must outlive it.
    children: set[SpawnProcess] = multiprocessing.process._children  # type: ignore[attr-defined]
    children.discard(process)


def _ensure_tracker() -> None:
    """Starts multiprocessing's resource tracker with the real stderr, which Textual replaces.

    The replacement's fileno() is -1, with which the start fails with "bad value(s) in fds_to_keep".
    """
    with contextlib.redirect_stderr(sys.__stderr__):
        resource_tracker.ensure_running()
