"""Builds what a run trains with: the model, the way to compute its step, and the way to update it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil
import torch
from accelerate import Accelerator

from engine import errors
from engine.data.windows import Windows
from engine.distributed.sharing import choose_sharing
from engine.models.adapter import attach_adapter, trainable
from engine.models.base_changes import BaseChanges
from engine.models.fused import fuse_kernels
from engine.models.head import check_head
from engine.models.loading import load_model
from engine.models.transforms import transform
from engine.optim.build import Stateful, Updating, build_updating
from engine.training import in_step
from engine.training.curriculum import Curriculum
from engine.training.early_stopping import EarlyStopping
from engine.training.in_step import InStepStore
from engine.training.layout import Layout
from engine.training.memory import memory_errors
from engine.training.micro_batch import fits_in_ram, fits_on_gpu, largest_that_fits
from engine.training.replanning import ClosableStep, ReplanningStep
from engine.training.step import WholeSequenceStep
from engine.training.streamed_windows import StreamedWindows
from engine.training.updates import tokens_per_update
from engine.training.ways import replanning_step

if TYPE_CHECKING:
    from peft import PeftModel

    from engine.config import RunConfig, TrainingSection
    from engine.runtime.session import TrainingSession
    from engine.training.setup import Setup
    from engine.training.state import Progress
    from engine.training.step import Window

_CPU = torch.device("cpu")
Tell = Callable[[str], None]
"""Takes a sentence for the log."""


def build_model(config: RunConfig, setup: Setup, tell: Tell) -> tuple[PeftModel, Accelerator]:
    """The base model with a fresh adapter, and accelerate's view of the device.

    Raises:
        EliteError: OUT_OF_MEMORY, MODEL_*, or the refusal of a technique that the model does not allow.
    """
    placement = setup.placement
    accelerator = Accelerator(cpu=placement.device.type == "cpu", mixed_precision=placement.mixed_precision)
    with memory_errors("loading the model", "the base weights", "use --set model.precision=nf4, or a smaller model"):
        stream = setup.choice.plan.stream
        streams_weights = stream is not None and stream.weights == "streamed"
        home = dataclasses.replace(placement, device=_CPU) if streams_weights else placement
        model = load_model(setup.spec, home, base_changes(config, setup))
        fused = config.model.fused_kernels and fuse_kernels(model, placement.device)
        check_head(model)
        adapted = attach_adapter(model, config.lora, config.training.seed)
    techniques = [*(["fused_kernels"] if fused else []), *transform(adapted, config.training, setup.context)]
    count = sum(parameter.numel() for parameter in trainable(adapted).values())
    tell(f"{setup.spec.parameters:,} parameters, of which the adapter trains {count:,} more")
    if techniques:
        tell(f"the model runs with {', '.join(techniques)}")
    return adapted, accelerator


def base_changes(config: RunConfig, setup: Setup) -> BaseChanges:
    """What is done to the base model before it gets its adapter."""
    return BaseChanges.of(config.model, setup.spec, setup.context)


def choose_step(
    session: TrainingSession,
    setup: Setup,
    model: PeftModel,
    accelerator: Accelerator,
    windows: Windows,
    progress: Progress,
    tell: Tell,
) -> ReplanningStep:
    """The way to compute a step. Every way gives the same gradient; the plan says which one fits, until it does not."""
    config, placement = session.config, setup.placement
    training, plan = config.training, setup.choice.plan.stream
    sharing = choose_sharing(session, setup)
    folder = in_step.folder_of(session.run.path, session.team.rank)
    store = InStepStore(folder, config.checkpoint.every_minutes * 60, session.emit)

    def build(layout: Layout) -> ClosableStep:
        if layout.stream is not None:
            tell(f"the step is streamed: {setup.context:,} tokens in tiles of {layout.stream.tile:,}")
            return StreamedWindows(
                model,
                layout.stream,
                device=placement.device,
                spill_directory=session.run.path,
                label_smoothing=training.label_smoothing,
                # A state within a step is one rank's; where a window is spread, it would take all of them.
                store=None if sharing.spreads_windows else store,
                make=sharing.streamed,
            )
        step = WholeSequenceStep(
            model,
            recompute=layout.recompute,
            autocast=accelerator.autocast,
            micro_batch=max(1, training.micro_batch),
            label_smoothing=training.label_smoothing,
        )
        if training.micro_batch == 0 and trainable(model):
            step.micro_batch = _find_micro_batch(setup, step, model, windows)
            tell(f"windows that go through the model together: {step.micro_batch}, the most that fit")
        return step

    planned = Layout(stream=plan, recompute=bool(setup.choice.plan.plan.get("checkpointing")))
    return replanning_step(session, setup, model, progress, planned, build, sharing.make)


def _find_micro_batch(setup: Setup, step: WholeSequenceStep, model: PeftModel, windows: Windows) -> int:
    """The largest micro-batch that fits, tried on a GPU, by formula on a CPU. At least one: the loop says what fails.

    No larger than one update: more windows never come together.
    """
    placement = setup.placement
    most = min(setup.choice.plan.windows_per_step, len(windows))
    if placement.device.type != "cuda":
        free = psutil.virtual_memory().available
        fits = fits_in_ram(setup.spec, setup.context, placement.dtype.itemsize, free)
        return max(1, largest_that_fits(fits, most))
    longest: Window = windows[0]

    def tried(count: int) -> bool:
        step.micro_batch = count
        return fits_on_gpu(step, longest, placement.device)(count)

    found = max(1, largest_that_fits(tried, most))
    model.zero_grad(set_to_none=True)
    return found


@dataclass(frozen=True, kw_only=True)
class Learning:
    """How a run learns from its gradients, and when it ends."""

    updating: Updating
    curriculum: Curriculum | None
    early_stopping: EarlyStopping | None

    @property
    def stateful(self) -> dict[str, Stateful]:
        """What a checkpoint has to bring back besides the optimiser and the schedule."""
        entries: dict[str, Stateful] = dict(self.updating.stateful)
        if self.early_stopping is not None:
            entries["early_stopping"] = self.early_stopping
        return entries

    def sequences(self, windows: Sequence[Window], step: int) -> Sequence[Window]:
        """What the update after `step` updates trains on, of its windows."""
        return windows if self.curriculum is None else self.curriculum.cut(windows, step)

    def averaged(self) -> AbstractContextManager[Any]:
        """Within it, the adapter is the one to be scored: the average, where there is one."""
        average = self.updating.average
        return nullcontext() if average is None else average.applied()

    def observe(self, loss: float) -> None:
        """The adapter that `averaged` shows scored this loss on the held-out files."""
        if self.early_stopping is not None:
            self.early_stopping.observe(loss)

    def early_end(self) -> str | None:
        """Why the run should end now, or None."""
        return None if self.early_stopping is None else self.early_stopping.reason

    def keep_result(self) -> None:
        """Leaves in the model what is to be saved: the best adapter, or the average, or the last one."""
        if self.updating.average is not None:
            self.updating.average.keep()
        if self.early_stopping is not None:
            self.early_stopping.keep_best()


def build_learning(model: PeftModel, config: RunConfig, *, context: int, total_steps: int) -> Learning:
    """What a configuration asks for.

    Raises:
        EliteError: CONFIG_INVALID when early stopping has no evaluations to watch; OPTIMIZATION_UNAVAILABLE.
    """
    training = config.training
    _check_early_stopping(training)
    tokens = tokens_per_update(training, context)
    return Learning(
        updating=build_updating(model, config, total_steps=total_steps, tokens_per_update=tokens),
        curriculum=Curriculum(context=context, total_steps=total_steps) if training.curriculum else None,
        early_stopping=EarlyStopping(trainable(model), training.early_stopping) if training.early_stopping else None,
    )


def _check_early_stopping(training: TrainingSection) -> None:
    if training.early_stopping and not training.evaluate_every:
        raise errors.CONFIG_INVALID(
            source="configuration",
            field="training.early_stopping",
            problem="there are no evaluations during the run to watch",
            remedy="set training.evaluate_every, for example to 10",
        )
