"""Keeps a run's promise in its plan.json, and what it took for later plans of this machine."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine import regular_file
from engine.evaluation.promise import Promise, Timeline, past_run
from engine.hardware import past_run_files
from engine.hardware.inventory import take_inventory
from engine.protocol.events import LogLine
from engine.whole_file import replace_text

if TYPE_CHECKING:
    from engine.data.window_source import Update
    from engine.protocol.events import RunFinished
    from engine.recipes.setup import Setup
    from engine.runs.context import TrainingSession


def keep_promise(session: TrainingSession, setup: Setup, updates: Sequence[Update], fim: float) -> Promise:
    """Adds to plan.json what the data tell, the promise and the share of fill-in-the-middle; returns the promise."""
    promise = Promise.of(setup.choice, [update.stage for update in updates])
    if session.group.leads:
        path = session.run.plan_path
        plan = {
            **json.loads(regular_file.read_text(path)),
            "fim": fim,
            "steps": len(updates),
            "promise": dataclasses.asdict(promise),
        }
        replace_text(path, json.dumps(plan, indent=1) + "\n")
    return promise


def keep_for_later_plans(
    session: TrainingSession, setup: Setup, updates: Sequence[Update], timeline: Timeline, finished: RunFinished
) -> None:
    """Keeps a run's times for later plans, where one process had this machine to itself."""
    machine = take_inventory(session.run.path)
    on_gpu = setup.placement.device.type == "cuda"
    if session.group.size > 1 or on_gpu != bool(machine.gpus):
        return
    stages = [update.stage for update in updates]
    try:
        past_run_files.add(machine, past_run(session.run.id, setup.spec.name, setup.choice, stages, timeline, finished))
    except OSError as error:
        session.emit(LogLine(level="info", text=f"the run's times are not kept for later plans: {error}"))
