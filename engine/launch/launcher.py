"""Starts the training process of a run.

The process is `spawn`ed: a fork of a program that has threads (every Textual app) or CUDA is not safe. It shares
nothing with its launcher but two queues, and outlives it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.process
import sys
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from typing import TYPE_CHECKING

from engine import errors
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
"""What the training process calls with its TrainingSession."""

SUPERVISED = "engine.launch.supervisor:train"
"""The same for a run of several ranks."""

_QUEUE_EVENTS = 1000
_START_TIMEOUT_S = 60.0


def launch(config: RunConfig, *, resume: RunDirectory | None = None, recipe: str = RECIPE) -> RunHandle:
    """Starts a run, or goes on with one, and returns when its process stands on its own.

    May be called in any thread, also within a running Textual app.

    Args:
        config: What to train, checked by `preflight.check`; for a resumed run, its own configuration but for what
            may change (engine.runs.resume_changes), which it then keeps.
        resume: The run to go on with; None makes a new one.
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
            raise errors.RUN_STILL_ACTIVE(run=run.id, status=status)
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
        # Already ended, if it is gone: the handle will say how.
        with contextlib.suppress(ProcessLookupError):
            write_record(run.process_path, ProcessRecord.of_process(process.pid or 0, first_seq))
    ready.close()
    # Until the child has opened the queues by name, this process must not exit: its end removes the names.
    wait([is_up], timeout=_START_TIMEOUT_S)
    is_up.close()
    return RunHandle(run, process=process, events=events, commands=commands, first_seq=first_seq)


def _start(process: SpawnProcess) -> None:
    # A Ctrl-C in the moment before the child has its handlers must reach it later, not kill it.
    mask = block_stop_signals()
    try:
        process.start()
    finally:
        restore_signals(mask)
    # multiprocessing joins its children when the interpreter exits. This child is meant to stay.
    children: set[SpawnProcess] = multiprocessing.process._children  # type: ignore[attr-defined]
    children.discard(process)


def _ensure_tracker() -> None:
    """Starts multiprocessing's resource tracker, which it would otherwise do with a stderr that Textual replaced.

    The replacement answers fileno() with -1, and the start fails with "bad value(s) in fds_to_keep".
    """
    with contextlib.redirect_stderr(sys.__stderr__):
        resource_tracker.ensure_running()
