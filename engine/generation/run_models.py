"""Loads a run's base and tuned model as they were trained: once for both, where the result is an adapter."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch

from engine import regular_file
from engine.errors import EliteError
from engine.errors.model import MODEL_DIRECTORY_INVALID
from engine.errors.runs import RESULT_DAMAGED, RUN_DAMAGED, RUN_WITHOUT_RESULT
from engine.hardware.limits import read_memory
from engine.models.base_changes import NO_CHANGES, BaseChanges
from engine.models.base_fingerprint import compare_with_base
from engine.models.catalogue import find_model
from engine.models.fine_tuning import AdapterTuning
from engine.models.fused import fuse_kernels
from engine.models.layer_input_table import look_up_on_host
from engine.models.loading import load_model, open_weights
from engine.models.mode import ModelMode
from engine.models.placement import Placement, choose_placement
from engine.plan.request import streaming_refusal
from engine.plan.step_layout import StepLayout
from engine.plan.stream_plan import StreamPlan, base_weights
from engine.plan.weight_lines import NF4_BITS
from engine.quantities import format_bytes
from engine.runs.result_check import result_problem
from engine.steps.failures import memory_errors
from engine.steps.fallback_policy import FallbackPolicy
from engine.steps.oom_fallback import ClosableStep, FallbackStep
from engine.steps.padding import longest_filled
from engine.steps.streamed_windows import StreamedWindows
from engine.steps.whole_step import WholeSequenceStep
from engine.streaming.fetched_layers import fetched_layers

if TYPE_CHECKING:
    from engine.config import RunConfig
    from engine.models.spec import ModelSpec
    from engine.runs.run_directory import RunDirectory

ADAPTER_CONFIG = "adapter_config.json"
_TEMPLATE = "chat_template.jinja"
_WEIGHTS_SHARE = 0.8
"""Share of the free memory that weights may take when text is generated; the rest is for keys and values."""


@dataclass(frozen=True)
class Scored:
    """A model that can score windows and generate text."""

    model: Any
    "The model, in evaluation mode."
    step: FallbackStep
    "Scores windows. It owns the model while open."
    device: torch.device
    "The compute device."

    @contextlib.contextmanager
    def writing(self) -> Iterator[Any]:
        """Closes the step, and yields the model, able to generate text."""
        self.step.close()
        with writing(self.model, self.step.layout, self.device):
            yield self.model


@contextlib.contextmanager
def writing(model: Any, layout: StepLayout, device: torch.device) -> Iterator[Any]:
    """Yields a model of this layout, able to generate text: layers that are offloaded fetch themselves."""
    stream = layout.stream
    if stream is None or not stream.streams_weights:
        yield model
        return
    with fetched_layers(model, device, mapped=stream.weights_home == "disk"):
        yield model


class ModelPair(Protocol):
    """The two models that are compared. Only one of them is open at a time."""

    def base(self) -> contextlib.AbstractContextManager[Scored]:
        """Opens the model before training."""

    def tuned(self) -> contextlib.AbstractContextManager[Scored]:
        """Opens the trained model."""


class AdaptedPair:
    """One model in memory; switching its adapter off gives the base."""

    def __init__(self, model: Any, step: FallbackStep, device: torch.device) -> None:
        self._model, self._step, self._device = model, step, device

    @contextlib.contextmanager
    def base(self) -> Iterator[Scored]:
        """See ModelPair."""
        with self._model.disable_adapter(), self.tuned() as scored:
            yield scored

    @contextlib.contextmanager
    def tuned(self) -> Iterator[Scored]:
        """See ModelPair."""
        with ModelMode(self._model).evaluating():
            yield Scored(self._model, self._step, self._device)


class SeparatePair:
    """Two whole models, each loaded while it is open, where the result is not an adapter."""

    def __init__(self, load_base: Callable[[], Scored], load_tuned: Callable[[], Scored]) -> None:
        self._load_base, self._load_tuned = load_base, load_tuned

    @contextlib.contextmanager
    def base(self) -> Iterator[Scored]:
        """See ModelPair."""
        with _for_a_while(self._load_base) as scored:
            yield scored

    @contextlib.contextmanager
    def tuned(self) -> Iterator[Scored]:
        """See ModelPair."""
        with _for_a_while(self._load_tuned) as scored:
            yield scored


@contextlib.contextmanager
def _for_a_while(load: Callable[[], Scored]) -> Iterator[Scored]:
    scored = load()
    try:
        yield scored
    finally:
        del scored
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


# --- models of a finished run -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RunModels:
    """Layout of a run's models on this machine."""

    spec: ModelSpec
    placement: Placement
    layout: StepLayout
    context: int
    result: Path
    "Folder of the adapter, or of a whole model."

    @property
    def is_adapter(self) -> bool:
        """Whether the result is an adapter for the base model."""
        return (self.result / ADAPTER_CONFIG).is_file()

    def chat_template(self, named: str) -> str:
        """Returns data.chat_template, or the result's copy of a file, which may have changed since."""
        kept = self.result / _TEMPLATE
        return str(kept) if named.endswith(".jinja") and kept.is_file() else named

    @property
    def resident(self) -> bool:
        """Whether all weights are on the device at once."""
        return not self.layout.streams_weights


def result_of(run: RunDirectory) -> Path:
    """Returns the folder of a run's adapter or model.

    Raises:
        EliteError: RUN_WITHOUT_RESULT, RESULT_DAMAGED.
    """
    for path in (run.adapter_path, run.model_path):
        if (path / ADAPTER_CONFIG).is_file() or (path / "config.json").is_file():
            if (problem := result_problem(path)) is not None:
                raise RESULT_DAMAGED(run=run.id, problem=problem)
            return path
    raise RUN_WITHOUT_RESULT(run=run.id, status=run.status())


def models_of(run: RunDirectory, config: RunConfig) -> RunModels:
    """Reads a run's plan and places its models on this machine.

    Raises:
        EliteError: RUN_WITHOUT_RESULT, RESULT_DAMAGED, RUN_DAMAGED, MODEL_*, DEVICE_UNAVAILABLE, PRECISION_UNAVAILABLE.
    """
    try:
        plan = regular_file.read_object(run.plan_path)
        context, precision = int(plan["context"]), str(plan["precision"])
        layout = _read_layout(plan)
        if context < 1:
            raise ValueError("context is below 1")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RUN_DAMAGED(path=run.path, problem=f"plan.json cannot be used ({error})") from error
    planned = "nf4" if precision == "nf4" else config.model.precision
    return RunModels(
        spec=find_model(config.model.name),
        placement=choose_placement(config.model.device, planned),
        layout=layout,
        context=context,
        result=result_of(run),
    )


def _read_layout(plan: Mapping[str, Any]) -> StepLayout:
    """Reads the layout from a plan.json; earlier versions had its streamed choices beside the others."""
    if "stream" in plan:
        precision = StepLayout(precision=str(plan["precision"]))
        return StepLayout.from_json({"stream": plan["stream"], "recompute": False}, like=precision)
    # Scoring has no backward pass, so nothing is recomputed.
    return dataclasses.replace(StepLayout.from_json(plan["plan"]), recompute=False)


def writing_layout(found: RunModels, notify: Callable[[str], None]) -> StepLayout:
    """Returns the layout for text: all weights on the device where they fit, else offloaded."""
    device, spec = found.placement.device, found.spec
    if device.type != "cuda":
        return StepLayout()
    four_bit = found.placement.precision == "nf4"
    quantised = spec.quantised_parameters if four_bit else 0
    layers = quantised * NF4_BITS / 8 + (spec.decoder_parameters - quantised) * found.placement.dtype.itemsize
    outside = (spec.parameters - spec.decoder_parameters) * found.placement.dtype.itemsize
    free, _ = torch.cuda.mem_get_info(device)
    if layers + outside < _WEIGHTS_SHARE * free:
        return StepLayout()
    table = spec.layer_table * found.placement.dtype.itemsize
    table_home: Literal["gpu", "host"] = "host" if table else "gpu"
    if table and layers + outside - table < _WEIGHTS_SHARE * free:
        return StepLayout(table_home=table_home)
    notify(f"the weights ({format_bytes(layers + outside)}) do not fit on the GPU: its layers come for each token")
    on_disk = four_bit and layers > _WEIGHTS_SHARE * read_memory().available
    stream = StreamPlan(
        weights=base_weights(four_bit=four_bit, streamed=True), weights_home="disk" if on_disk else "host"
    )
    return StepLayout(stream=stream, recompute=False, precision=found.placement.precision, table_home=table_home)


def load_pair(found: RunModels, config: RunConfig, *, notify: Callable[[str], None], spill: Path) -> ModelPair:
    """Loads the models of a run: with an adapter at once, whole models when they are opened.

    Args:
        found: From `models_of`.
        config: The run's configuration.
        notify: Called with each fallback to a smaller layout.
        spill: Folder for hidden states on disk.

    Raises:
        EliteError: MODEL_*, OUT_OF_MEMORY.
    """
    if found.is_adapter:
        model = load_adapted(found, config, notify=notify)
        return AdaptedPair(model, scoring(model, found, notify=notify, spill=spill), found.placement.device)

    def ready(model: Any) -> Scored:
        return Scored(model.eval(), scoring(model, found, notify=notify, spill=spill), found.placement.device)

    whole = dataclasses.replace(found.spec, name=found.result.name, path=found.result, hub_id=None)
    return SeparatePair(
        lambda: ready(load_base(found, config, notify=notify)),
        lambda: ready(load_base(dataclasses.replace(found, spec=whole), config, notify=notify)),
    )


def load_base(found: RunModels, config: RunConfig, *, notify: Callable[[str], None] = lambda _: None) -> Any:
    """Loads the base model, with its changes before training."""
    placement, device = found.placement, found.placement.device
    table_on_host = found.layout.table_home == "host" and device.type == "cuda"
    if table_on_host or not found.resident:
        placement = dataclasses.replace(placement, device=torch.device("cpu"))
    with memory_errors("loading the model", "the base weights", "use --set model.precision=nf4, or a smaller model"):
        changes = changes_of(found, config)
        model = load_model(found.spec, placement, changes, quantise_on=device, notify=notify)
        if table_on_host:
            look_up_on_host(model, device, rest_on_host=not found.resident)
        if config.model.fused_kernels:
            fuse_kernels(model, device)
    return model


def load_adapted(found: RunModels, config: RunConfig, *, notify: Callable[[str], None] = lambda _: None) -> Any:
    """Loads the base model with the run's adapter on it, frozen.

    Raises:
        EliteError: MODEL_DIRECTORY_INVALID for an adapter that cannot be read, or that belongs to another model;
            BASE_CHANGED where the base's weights differ from those that it was trained on.
    """
    from peft import PeftModel

    try:
        compare_with_base(found.result, open_weights(found.spec)[0], "the adapter")
    except (OSError, ValueError) as error:
        raise MODEL_DIRECTORY_INVALID(path=found.result, problem=f"the adapter: {error}") from error
    base = load_base(found, config, notify=notify)
    try:
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings", category=UserWarning)
        # Name the base's device: PEFT would otherwise take the first GPU, wherever the base is.
        return PeftModel.from_pretrained(base, found.result, torch_device=str(base.device)).eval()
    except (EliteError, MemoryError):
        raise
    except Exception as error:  # of any kind, by what adapter_config.json holds
        problem = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise MODEL_DIRECTORY_INVALID(path=found.result, problem=f"the adapter: {problem}") from error


def changes_of(found: RunModels, config: RunConfig) -> BaseChanges:
    """Returns the changes to a run's base model before training."""
    if found.spec.path == found.result:
        return NO_CHANGES  # a whole model's own configuration holds them
    if not found.is_adapter:
        return BaseChanges.of(config.model, found.spec, found.context)
    try:
        return BaseChanges.read(found.result)
    except (ValueError, TypeError):
        return BaseChanges.of(config.model, found.spec, found.context)


def scoring(model: Any, found: RunModels, *, notify: Callable[[str], None], spill: Path) -> FallbackStep:
    """Builds the step that scores windows: in the run's own layout, or a smaller one where that does not fit here."""
    device = found.placement.device
    tuning = AdapterTuning(model)  # nothing is trained here, adapter or not
    longest = longest_filled(found.context, device)

    def build(layout: StepLayout) -> ClosableStep:
        if layout.stream is not None:
            return StreamedWindows(tuning, layout.stream, device=device, spill_directory=spill, fill_up_to=longest)
        return WholeSequenceStep(model, recompute=False, autocast=_autocast(found.placement), fill_up_to=longest)

    policy = FallbackPolicy(
        context=found.context,
        layers=found.spec.layers,
        quantised=found.placement.precision == "nf4",
        on_gpu=device.type == "cuda",
        streamable=streaming_refusal(found.spec, found.context) is None,
    )
    return FallbackStep(
        tuning, found.layout, build=build, smaller=policy.smaller, notify=lambda what, why: notify(f"{what}: {why}")
    )


def _autocast(placement: Placement) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """Returns Accelerate's autocast, without its other setup."""
    if placement.mixed_precision == "no":
        return contextlib.nullcontext
    return lambda: torch.autocast(placement.device.type, dtype=placement.dtype)
