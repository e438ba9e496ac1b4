"""Builds small in-memory training runs: trainer components over a tiny model, and a run directory for checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from support.session import RecordingSession, Script
from support.tiny import patterned_windows, tiny_model

from engine.config import RunConfig, from_mapping
from engine.data.window_source import WindowSource, count_updates
from engine.models.adapter import attach_adapter
from engine.models.fine_tuning import AdapterTuning
from engine.recipes.building import build_learning
from engine.runs.run_directory import RunDirectory
from engine.steps.whole_step import TrainingStep, WholeSequenceStep
from engine.training.checkpoints import CheckpointFolder, Retention
from engine.training.components import TrainerComponents
from engine.training.state import Progress

CONTEXT = 64
WINDOWS = patterned_windows([CONTEXT] * 11 + [20, 3], seed=3)


def run_config(**sections: Mapping[str, Any]) -> RunConfig:
    """Configures six updates of 128 tokens, with dropout, so that the random state matters."""
    values: dict[str, dict[str, Any]] = {
        "training": {"context": CONTEXT, "tokens_per_update": 128, "learning_rate": 0.01, "epochs": 1.0},
        "lora": {"rank": 4, "dropout": 0.1},
        "checkpoint": {"keep": 100},
    }
    for section, fields in sections.items():
        values[section] = {**values.get(section, {}), **fields}
    return from_mapping(values)


def new_session(
    path: Path,
    script: Script | None = None,
    *,
    run: RunDirectory | None = None,
    resuming: bool = False,
    **sections: Mapping[str, Any],
) -> RecordingSession:
    return RecordingSession(
        config=run_config(**sections), run=run or RunDirectory(path), resuming=resuming, script=script or {}
    )


def build(
    session: RecordingSession,
    *,
    step_type: Callable[..., TrainingStep] = WholeSequenceStep,
    model: Any = None,
    windows: WindowSource = WINDOWS,
    scored: list[int] | None = None,
) -> tuple[TrainerComponents, Progress]:
    """Builds the components and the progress of a fresh run."""

    def evaluate() -> float:
        if scored is not None:
            scored.append(1)
        return 2.0

    training = session.config.training
    torch.manual_seed(training.seed)
    accelerator = Accelerator(cpu=True)
    adapted = attach_adapter(model or tiny_model(), session.config.lora, training.seed)
    tuning = AdapterTuning(adapted)
    total = count_updates(windows, training, CONTEXT)
    learning = build_learning(tuning, session.config, context=CONTEXT, total_steps=total)
    parts = TrainerComponents(
        tuning=tuning,
        step=step_type(adapted, recompute=False),
        optimizer=accelerator.prepare(learning.updating.optimizer),
        schedule=learning.updating.schedule,
        gradients=learning.updating.gradients,
        accelerator=accelerator,
        windows=windows,
        context=CONTEXT,
        seed=training.seed,
        checkpoints=CheckpointFolder(session.run.checkpoints_path, Retention(newest=session.config.checkpoint.keep)),
        evaluate=evaluate,
        stateful=learning.stateful,
        sequences=learning.sequences,
        early_end=learning.early_end,
    )
    return parts, Progress(total_steps=total)
