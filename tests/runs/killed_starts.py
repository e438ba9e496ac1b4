"""Kills training processes, each at its first event of one phase or part of a phase. Prints their folders.

A script that imports everything once and forks: a fork of the test runner would lack its threads.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import engine.recipes.fine_tune
from engine.launch import child
from engine.protocol.events import PhaseChanged
from engine.runs.run_directory import RunDirectory
from tests.chaos.lab import Lab, in_fork, wait_for

BEFORE_THE_RECIPE = 2
"""Events of phases: the first one, and that of the recipe's import."""
kill_at = 0


def train(session):
    """The real recipe, killed as soon as the event of its phase or part is in the journal."""
    count = BEFORE_THE_RECIPE

    def kill(envelope):
        nonlocal count
        count += isinstance(envelope.event, PhaseChanged)
        if count > kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    session.listen(kill)
    engine.recipes.fine_tune.train(session)


def attempt(run, config):
    """What the launcher starts, with the recipe of this file."""
    context = multiprocessing.get_context("fork")
    _, ready = context.Pipe(duplex=False)
    queues = context.Queue(1000), context.SimpleQueue()
    child.main(str(run.path), config, False, "__main__:train", *queues, ready)


def main(folder: Path) -> None:
    """Kills each process one event later than the one before, until a run is complete."""
    global kill_at
    lab = Lab(folder, 0)
    status = -signal.SIGKILL
    while status == -signal.SIGKILL:
        kill_at += 1
        config = lab.config(f"out-{kill_at}", max_steps=1, evaluate_every=0)
        run = RunDirectory.create(config)
        status = wait_for(in_fork(lambda run=run, config=config: attempt(run, config)))
        print(json.dumps({"run": str(run.path), "status": status}), flush=True)


if __name__ == "__main__":
    kill_at = BEFORE_THE_RECIPE - 1
    main(Path(sys.argv[1]))
