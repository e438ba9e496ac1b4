"""Builds the model of a run, its step, and its optimiser with everything around it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil
import torch
from accelerate import Accelerator

from engine.data.window_source import tokens_per_update
from engine.data.windows import Windows
from engine.distributed.torch_process_group import TorchProcessGroup
from engine.errors.usage import CONFIG_INVALID
from engine.models.adapter import attach_adapter, trainable
from engine.models.base_changes import BaseChanges
from engine.models.fine_tuning import AdapterTuning, FineTuning, FullTuning
from engine.models.fused import fuse_kernels
from engine.models.layer_input_table import look_up_on_host
from engine.models.loading import load_model
from engine.models.transforms import transform
from engine.optim.adamw import adamw
from engine.optim.build import Stateful, Updating, build_updating
from engine.optim.schedule import peak_rate
from engine.plan.step_layout import StepLayout
from engine.protocol.events import PhaseChanged
from engine.recipes.sharing import ALONE, Sharing
from engine.recipes.step_choice import fallback_step
from engine.steps import partial_checkpoint
from engine.steps.failures import memory_errors
from engine.steps.micro_batch import fits_in_ram, fits_on_gpu, largest_that_fits
from engine.steps.oom_fallback import ClosableStep
from engine.steps.padding import longest_filled
from engine.steps.partial_checkpoint import PartialCheckpointStore
from engine.steps.streamed_windows import StreamedWindows
from engine.steps.whole_step import TrainingStep, WholeSequenceStep
from engine.steps.zero_step import ZeroStep, ZeroTuning
from engine.training.curriculum import Curriculum
from engine.training.early_stopping import EarlyStopping

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from engine.config import RunConfig, TrainingSection
    from engine.recipes.setup import Setup
    from engine.runs.context import TrainingSession
    from engine.steps.whole_step import Window
    from engine.training.state import Progress

_CPU = torch.device("cpu")
Tell = Callable[[str], None]
"""Logs a sentence."""


def build_model(
    config: RunConfig, setup: Setup, notify: Tell, sharing: Sharing = ALONE
) -> tuple[FineTuning, Accelerator]:
    """Builds the model for full fine-tuning or with a new adapter, and accelerate's Accelerator for the device.

    Raises:
        EliteError: OUT_OF_MEMORY, MODEL_*, or the refusal of a technique that the model does not allow.
    """
    placement = setup.placement
    accelerator = Accelerator(cpu=placement.device.type == "cpu", mixed_precision=placement.mixed_precision)
    with memory_errors("loading the model", "the base weights", "use --set model.precision=nf4, or a smaller model"):
        layout = setup.choice.plan.layout
        table_on_host = layout.table_home == "host" and placement.device.type == "cuda"
        on_host = layout.streams_weights or sharing.strategy == "zero3"
        # The GPU may have no room for the table, not even while the model is loaded.
        home = dataclasses.replace(placement, device=_CPU) if on_host or table_on_host else placement
        model = load_model(setup.spec, home, base_changes(config, setup), quantise_on=placement.device, notify=notify)
        if table_on_host:
            look_up_on_host(model, placement.device, rest_on_host=on_host)
        fused = config.model.fused_kernels and fuse_kernels(model, placement.device)
        tuning = _tuning(model, config, setup, sharing)
    techniques = [*(["fused_kernels"] if fused else []), *transform(tuning.model, config.training, setup.context)]
    count = sum(parameter.numel() for parameter in tuning.weights.values())
    if isinstance(tuning, FullTuning):
        notify(f"all {count:,} parameters are trained, in fp32 on the {setup.choice.plan.layout.master_home}")
    else:
        notify(f"{setup.spec.parameters:,} parameters; the adapter trains {count:,} of its own")
    if techniques:
        notify(f"the model runs with {', '.join(techniques)}")
    return tuning, accelerator


def _tuning(model: PreTrainedModel, config: RunConfig, setup: Setup, sharing: Sharing) -> FineTuning:
    if config.training.method == "full":
        on_gpu = setup.choice.plan.layout.master_home == "gpu"
        return FullTuning(model, setup.placement.device if on_gpu else _CPU)
    kind = ZeroTuning if sharing.uses_zero else AdapterTuning
    return kind(attach_adapter(model, config.lora, config.training.seed))


def base_changes(config: RunConfig, setup: Setup) -> BaseChanges:
    """Returns the changes to the base model before training."""
    return BaseChanges.of(config.model, setup.spec, setup.context)


def choose_step(
    session: TrainingSession,
    setup: Setup,
    tuning: FineTuning,
    accelerator: Accelerator,
    windows: Windows,
    progress: Progress,
    notify: Tell,
    sharing: Sharing = ALONE,
) -> TrainingStep:
    """Builds the planned step, which falls back to smaller layouts on OOM. Every layout gives the same gradient."""
    config, placement = session.config, setup.placement
    training = config.training
    if isinstance(tuning, ZeroTuning):
        return _zero_step(session, setup, tuning)
    folder = partial_checkpoint.folder_of(session.run.path, session.group.rank)
    store = PartialCheckpointStore(folder, config.checkpoint.every_minutes * 60, session.emit)

    def build(layout: StepLayout) -> ClosableStep:
        if layout.stream is not None:
            notify(f"the step is streamed: {setup.context:,} tokens in tiles of {layout.stream.tile:,}")
            return StreamedWindows(
                tuning,
                layout.stream,
                device=placement.device,
                spill_directory=session.run.path,
                label_smoothing=training.label_smoothing,
                # A partial checkpoint is one rank's. A window that is spread over ranks would need all of theirs.
                store=None if sharing.spreads_windows else store,
                make=sharing.streamed,
                fill_up_to=longest_filled(setup.context, setup.placement.device),
                graphs=training.cuda_graphs,
                notify=notify,
            )
        masters = tuning.masters
        step = WholeSequenceStep(
            tuning.model,
            recompute=layout.recompute,
            autocast=accelerator.autocast,
            micro_batch=max(1, training.micro_batch),
            label_smoothing=training.label_smoothing,
            gradients=None if masters is None else masters.gradients,
            fill_up_to=longest_filled(setup.context, setup.placement.device),
        )
        # Windows of a schedule grow: what fits together of the longest says little of the others.
        if training.micro_batch == 0 and trainable(tuning.model) and setup.choice.schedule is None:
            if placement.device.type == "cuda":
                session.emit(PhaseChanged(phase="model", detail="trying how many windows fit together"))
            step.micro_batch = _find_micro_batch(setup, step, tuning, windows)
            notify(f"windows that go through the model together: {step.micro_batch}, the most that fit")
        return step

    return fallback_step(session, setup, tuning, progress, build, sharing.make, sharing.came_to)


def _zero_step(session: TrainingSession, setup: Setup, tuning: ZeroTuning) -> ZeroStep:
    training = setup.training
    assert isinstance(session.group, TorchProcessGroup)
    rate = peak_rate(training, tokens_per_update(training, setup.context))
    return ZeroStep(
        tuning,
        adamw(tuning, session.config, rate),
        session.run.deepspeed_path,
        device=setup.placement.device,
        group=session.group,
        recompute=setup.choice.plan.layout.recompute,
        label_smoothing=training.label_smoothing,
        fill_up_to=longest_filled(setup.context, setup.placement.device),
    )


def _find_micro_batch(setup: Setup, step: WholeSequenceStep, tuning: FineTuning, windows: Windows) -> int:
    """Finds the largest microbatch that fits, by trial on a GPU and by formula on a CPU.

    It is at least one, as the loop reports a window that does not fit. It is at most the windows of one update, as more
    are never batched.
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
    for parameter in tuning.weights.values():
        parameter.grad = None
    return found


@dataclass(frozen=True, kw_only=True)
class Learning:
    """Optimiser side of a run, with curriculum, weight average and early stopping."""

    tuning: FineTuning
    updating: Updating
    curriculum: Curriculum | None
    early_stopping: EarlyStopping | None

    @property
    def stateful(self) -> dict[str, Stateful]:
        """Stateful components for checkpoints, besides the optimiser and the schedule."""
        entries: dict[str, Stateful] = dict(self.updating.stateful)
        if self.early_stopping is not None:
            entries["early_stopping"] = self.early_stopping
        return entries

    def sequences(self, windows: Sequence[Window], step: int) -> Sequence[Window]:
        """Returns the sequences of the update after `step` updates, cut from its windows."""
        return windows if self.curriculum is None else self.curriculum.cut(windows, step)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Applies the weight average within the context, if there is one, for evaluation."""
        if (average := self.updating.average) is None:
            yield
            return
        with average.applied():
            self.tuning.publish()
            yield
        self.tuning.publish()

    def observe(self, loss: float) -> None:
        """Records the held-out loss of the weights that `averaged` applies."""
        if self.early_stopping is not None:
            self.early_stopping.observe(loss)

    def early_end(self) -> str | None:
        """Returns why the run should end now; None if it should not."""
        return None if self.early_stopping is None else self.early_stopping.reason

    def keep_result(self) -> None:
        """Loads the weights to save into the model, which are the best ones, their average, or the last ones."""
        if self.updating.average is not None:
            self.updating.average.keep()
        if self.early_stopping is not None:
            self.early_stopping.keep_best()
        self.tuning.publish()


def build_learning(tuning: FineTuning, config: RunConfig, *, context: int, total_steps: int) -> Learning:
    """Builds the configured optimiser, curriculum and early stopping.

    Raises:
        EliteError: CONFIG_INVALID, if early stopping has no evaluations to watch; OPTIMIZATION_UNAVAILABLE.
    """
    training = config.training
    _check_early_stopping(training)
    tokens = tokens_per_update(training, context)
    return Learning(
        tuning=tuning,
        updating=build_updating(tuning, config, total_steps=total_steps, tokens_per_update=tokens),
        curriculum=Curriculum(context=context, total_steps=total_steps) if training.curriculum else None,
        early_stopping=EarlyStopping(tuning.weights, training.early_stopping) if training.early_stopping else None,
    )


def _check_early_stopping(training: TrainingSection) -> None:
    if training.early_stopping and not training.evaluate_every:
        raise CONFIG_INVALID(
            source="configuration",
            field="training.early_stopping",
            problem="there are no evaluations during the run to watch",
            remedy="set training.evaluate_every, for example to 10",
        )
