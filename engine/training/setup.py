"""What is decided before anything large is read: model, device, number formats, context, where to go on from."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from accelerate.utils import set_seed

from engine import __version__, errors
from engine.models.catalogue import ModelSpec, find_model
from engine.models.placement import Placement, choose_placement
from engine.protocol import RecoveryTaken, RunStarted, WarningRaised
from engine.training.checkpoints import Checkpoint, CheckpointDamagedError, CheckpointFolder, verify
from engine.training.state import read_progress

if TYPE_CHECKING:
    from engine.runtime.session import TrainingSession


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The decisions."""

    spec: ModelSpec
    placement: Placement
    context: int
    "Tokens a window."
    checkpoints: CheckpointFolder
    resumed: Checkpoint | None
    started: float
    "time.monotonic() when the run began."


def set_up(session: TrainingSession) -> Setup:
    """Decides, seeds the generators, and announces the run.

    Raises:
        EliteError: MODEL_*, DEVICE_UNAVAILABLE, PRECISION_UNAVAILABLE, TIER_DOES_NOT_FIT, NOTHING_TO_RESUME.
    """
    started = time.monotonic()
    config = session.config
    set_seed(config.training.seed)
    spec = find_model(config.model.name)
    placement = choose_placement(config.model.device, config.model.precision)
    context = config.training.context or _planned_context(session, spec)
    checkpoints = CheckpointFolder(session.run.checkpoints_path, config.checkpoint.keep)
    resumed, damaged = _newest_valid(checkpoints) if session.resuming else (None, [])
    if session.resuming and resumed is None:
        raise errors.NOTHING_TO_RESUME(run=session.run.id)
    total_steps = read_progress(resumed).total_steps if resumed else config.training.max_steps or 0
    session.emit(
        RunStarted(
            model=config.model.name,
            context=context,
            total_steps=total_steps,
            first_step=resumed.step if resumed else 0,
            device=device_name(placement.device),
            pid=os.getpid(),
            engine_version=__version__,
        )
    )
    _report_damage(session, resumed, damaged)
    return Setup(
        spec=spec,
        placement=placement,
        context=context,
        checkpoints=checkpoints,
        resumed=resumed,
        started=started,
    )


def device_name(device: torch.device) -> str:
    """The card's name, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _newest_valid(checkpoints: CheckpointFolder) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint whose bytes are all as written, and what is wrong with the ones after it."""
    damaged: list[str] = []
    for path in checkpoints.newest_first():
        try:
            return verify(path), damaged
        except CheckpointDamagedError as error:
            damaged.append(f"{path.name}: {error}")
    return None, damaged


def _report_damage(session: TrainingSession, resumed: Checkpoint | None, damaged: list[str]) -> None:
    for text in damaged:
        session.emit(
            WarningRaised(
                code="checkpoint-damaged",
                text=f"checkpoint {text}",
                hint="the disk may be failing: the run goes on from an older checkpoint",
            )
        )
    if damaged and resumed:
        session.emit(RecoveryTaken(what=f"went on from {resumed.path.name}", why="a newer checkpoint is damaged"))


def _planned_context(session: TrainingSession, spec: ModelSpec) -> int:
    """The context of the tier asked for, or of the highest that fits and the repository fills."""
    from engine.data.collect import collect, estimate_tokens
    from engine.data.repositories import repository_paths
    from engine.hardware.inventory import take_inventory
    from engine.plan.planner import choose_context

    config = session.config
    collection = collect(repository_paths(config.data), max_file_bytes=config.data.max_file_bytes)
    return choose_context(config, take_inventory(session.run.path), spec, estimate_tokens(collection))
