"""The planner's request: machine, model and settings, the same for every context of a table."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from msgspec import structs

from engine.config import (
    CheckpointSection,
    DataSection,
    DistributedSection,
    EvaluationSection,
    LoraSection,
    StreamSection,
    TrainingSection,
)
from engine.errors.model import PRECISION_UNAVAILABLE
from engine.errors.usage import CONFIG_INVALID
from engine.hardware.machine import Gpu, Machine
from engine.models.families import refusal
from engine.models.spec import EXPERTS, ModelSpec
from engine.plan.learning_rate import learning_rate_of
from engine.plan.search import Way
from engine.plan.speeds import CPU_ATTENTION_EFFICIENCY, WIDEST_FLASH, attention_efficiency
from engine.plan.strategy import sharding_refusal
from engine.plan.stream_plan import BaseWeights, in_4_bits
from engine.plan.time import flops_by_head_size
from engine.plan.workload import Backend, ComputeType, Workload

PATIENCE_GPU = 10 * 3600.0
"Seconds that one window of the recommended tier may take on a GPU: a night."
PATIENCE_CPU = 60.0
"The same without a GPU, where long contexts are a demonstration."
TOKENS_PER_UPDATE = 8192
"Default of training.tokens_per_update, unless one window is larger."
LEAST_SHARE = 4096
"Tokens of a window per rank from which auto shares it; with fewer, a layer's messages cost too much."
Method = Literal["lora", "full"]
"""Training method: an adapter, or every weight."""


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """Inputs that all contexts of one table share. The sections are a run's configuration."""

    machine: Machine
    "The machine that trains; of several processes, the share of one of them."
    spec: ModelSpec
    compute_type: ComputeType
    weights: tuple[BaseWeights, ...]
    "Allowed storages of the base weights."
    lora: LoraSection = field(default_factory=LoraSection)
    training: TrainingSection = field(default_factory=TrainingSection)
    stream: StreamSection = field(default_factory=StreamSection)
    data: DataSection = field(default_factory=DataSection)
    distributed: DistributedSection = field(default_factory=DistributedSection)
    checkpoint: CheckpointSection = field(default_factory=CheckpointSection)
    evaluation: EvaluationSection = field(default_factory=EvaluationSection)
    repository_tokens: int | None = None
    "Tokens to train on; None where the number is not known."
    fused_kernels: bool = True
    "`model.fused_kernels`."
    ranks: int = 1
    "Processes on all hosts."
    rank_link: float = 10e9
    "Bytes a second from a rank to the next."

    @classmethod
    def of(cls, machine: Machine, spec: ModelSpec, precision: str = "auto", **changes: Any) -> PlanRequest:
        """Builds the request for a precision on a machine; `changes` sets further fields.

        Raises:
            EliteError: PRECISION_UNAVAILABLE.
        """
        compute_type, weights = storage(machine, precision, changes.get("training", TrainingSection()).method)
        return cls(machine=machine, spec=spec, **{"compute_type": compute_type, "weights": weights, **changes})

    def stepping(self, way: Way) -> PlanRequest:
        """Returns the request with another `training.step`."""
        return dataclasses.replace(self, training=structs.replace(self.training, step=way))

    @functools.cached_property
    def fixed(self) -> Mapping[str, Any]:
        """Fields of StreamPlan that the configuration sets, and their values."""
        return self.stream.fixed()

    @property
    def trains_adapter(self) -> bool:
        """Whether an adapter is trained; otherwise every weight is."""
        return self.training.method == "lora"

    @property
    def learning_rate(self) -> float:
        """Peak learning rate, as configured or by the model's width."""
        return learning_rate_of(self.spec, self.training, self.lora)

    @functools.cached_property
    def adapter_parameters(self) -> int:
        """Number of adapter parameters; 0 where every weight is trained."""
        lora = self.lora
        return self.spec.lora_parameters(lora.rank, lora.targets, lora.expert_rank) if self.trains_adapter else 0

    @property
    def multiplied_adapter(self) -> int:
        """Of these, the parameters that a token passes through."""
        lora = self.lora
        return self.spec.multiplied_lora(lora.rank, lora.targets, lora.expert_rank) if self.trains_adapter else 0

    @property
    def step(self) -> Way:
        """`training.step`; streamed where the configuration sets a field of the streamed step."""
        way = self.training.step
        return "streamed" if self.fixed and way == "auto" else way

    def window_ranks(self, context: int) -> int:
        """Returns the number of ranks that share one window: all of them, or one."""
        if self.training.step == "whole":
            return 1
        if self.distributed.strategy in ("ring", "ulysses"):
            return self.ranks
        spread = (
            self.distributed.strategy == "auto"
            and self.windows_per_update(context) < self.ranks
            and context // self.ranks >= LEAST_SHARE
        )
        shares = sharding_refusal(self.spec) is None and streaming_refusal(self.spec, context) is None
        return self.ranks if spread and shares else 1

    def windows_per_update(self, context: int) -> int:
        """Returns the full windows of an update, nearest to its configured tokens (engine.data.window_source)."""
        least = 2 if self.training.objective == "dpo" else 1  # both sides of a pair
        return max(least, math.floor((self.training.tokens_per_update or TOKENS_PER_UPDATE) / context + 0.5))

    @property
    def train_tokens(self) -> float | None:
        """Tokens of the repository that are trained on; None where its size is not known."""
        tokens = self.repository_tokens
        return None if tokens is None else tokens * (1 - self.data.held_out_fraction)

    @property
    def on_gpu(self) -> bool:
        """Whether the first GPU trains."""
        return bool(self.machine.gpus)

    @property
    def patience(self) -> float:
        """Seconds that one window of the recommended tier may take."""
        return PATIENCE_GPU if self.on_gpu else PATIENCE_CPU


def storage(machine: Machine, precision: str, method: Method = "lora") -> tuple[ComputeType, tuple[BaseWeights, ...]]:
    """Resolves a precision on a machine to the compute type, and the allowed storages of the base weights.

    Raises:
        EliteError: PRECISION_UNAVAILABLE; also for full fine-tuning of 4-bit weights.
    """
    if method == "full" and precision == "nf4":
        raise PRECISION_UNAVAILABLE(
            precision="nf4",
            problem="weights stored in 4 bits cannot be trained themselves",
            remedy="use bf16 or auto, or training.method=lora",
        )
    compute_type, weights = _storages(machine, precision)
    return compute_type, tuple(each for each in weights if method == "lora" or not in_4_bits(each))


def _storages(machine: Machine, precision: str) -> tuple[ComputeType, tuple[BaseWeights, ...]]:
    if not machine.gpus:
        if precision == "fp16":
            raise PRECISION_UNAVAILABLE(
                precision="fp16", problem="CPUs do not train in it", remedy="use fp32, bf16 or auto"
            )
        return "bf16" if precision == "bf16" else "fp32", ("nf4",) if precision == "nf4" else ("resident",)
    gpu = machine.gpus[0]
    if precision == "bf16" and not gpu.has_bf16:
        raise PRECISION_UNAVAILABLE(
            precision="bf16", problem=f"{gpu.name} does not compute in it", remedy="use fp16, nf4 or auto"
        )
    half: ComputeType = "bf16" if gpu.has_bf16 else "fp16"
    four_bit: tuple[BaseWeights, ...] = ("nf4", "nf4-streamed")
    if precision == "nf4":
        return half, four_bit
    if precision == "auto":
        # A simulated machine has no list of libraries; assume that it has every one.
        installed = machine.libraries.get("bitsandbytes", "unknown") is not None
        return half, ("resident", "streamed", *four_bit) if installed else ("resident", "streamed")
    own: ComputeType = "fp32" if precision == "fp32" else "fp16" if precision == "fp16" else "bf16"
    return own, ("resident", "streamed")


def workload_of(planning: PlanRequest, context: int) -> Workload:
    """Builds the workload of windows of `context` tokens."""
    spec = planning.spec
    gpu = planning.machine.gpus[0] if planning.on_gpu else None
    # A simulated machine has no list of libraries; assume that it has every one.
    liger, rules = (
        gpu is not None and planning.machine.libraries.get(name, "unknown") is not None
        for name in ("liger-kernel", "fla-core")
    )
    ranks = planning.window_ranks(context)
    asked = planning.fixed.get("attention")
    backend = attention_backend(gpu, spec.head_dim) if asked is None else _asked_backend(asked, gpu)
    if spec.softcap is not None:
        backend = "softcapped"
    work = Workload(
        spec=spec,
        context=math.ceil(context / ranks),
        ranks=ranks,
        exchange="ulysses" if planning.distributed.strategy == "ulysses" else "ring",
        rank_link=planning.rank_link,
        compute_type=planning.compute_type,
        lora_parameters=planning.adapter_parameters,
        on_gpu=planning.on_gpu,
        lora_rank=planning.lora.rank if planning.trains_adapter else 0,
        multiplied_lora=planning.multiplied_adapter,
        adapts_experts=planning.trains_adapter and EXPERTS in planning.lora.targets,
        backend=backend,
        attention=asked,
        fused_kernels=liger and planning.fused_kernels and refusal(spec.family, "fused") is None,
        served_norms=liger and planning.fused_kernels,
        recurrent_kernels=rules and planning.compute_type != "fp32",
        fused_loss=liger,
        workspaces=_matrix_workspaces(gpu),
        gpu_context=planning.machine.measured.gpu_context if planning.machine.measured else None,
        attention_efficiency=CPU_ATTENTION_EFFICIENCY,
        repository_tokens=planning.repository_tokens or 0,
        activation_bits=planning.training.activation_bits,
        scored=planning.training.objective == "dpo",
    )
    return work if gpu is None else replace(work, attention_efficiency=_mean_efficiency(gpu, work))


def _mean_efficiency(gpu: Gpu, work: Workload) -> tuple[float, float]:
    """Returns the share of the tensor rate that attention reaches over layers whose heads may have several sizes."""
    flops = flops_by_head_size(work)
    if len(flops) < 2 or work.backend == "softcapped":
        return attention_efficiency(gpu, work.spec.head_dim, work.backend)
    forward = backward = 0.0
    for head_dim, operations in flops.items():
        of_size = attention_efficiency(
            gpu, head_dim, work.backend if work.attention else attention_backend(gpu, head_dim)
        )
        forward += operations / of_size[0]
        backward += operations / of_size[1]
    total = sum(flops.values())
    return total / forward, total / backward


def streaming_refusal(spec: ModelSpec, context: int) -> str | None:
    """Returns why the streamed step refuses a model at a context (engine.streaming.decoder); None where it does not."""
    if problem := refusal(spec.family, "streamed") or spec.not_streamed:
        return problem
    if spec.fixed_rope_context is not None and context > spec.fixed_rope_context:
        return f"beyond {spec.fixed_rope_context:,} tokens its rotary tables change with the length"
    return None


def whole_refusal(spec: ModelSpec, context: int) -> str | None:
    """Returns why windows of a context cannot be computed whole; None where they can.

    `dynamic` rotary tables depend on the longest input so far: a document's gradient would depend on its neighbours.
    """
    if problem := refusal(spec.family, "whole"):
        return problem
    if spec.rope_type == "dynamic" and spec.fixed_rope_context is not None and context > spec.fixed_rope_context:
        return f"beyond {spec.fixed_rope_context:,} tokens its rotary tables change with the longest input so far"
    return None


def attention_backend(gpu: Gpu | None, head_dim: int) -> Backend:
    """Returns the kernel expected to win the measurements of `engine.attention.select` on a GPU."""
    if gpu is None:
        return "cpu"
    capability = gpu.compute_capability or (8, 0)
    if capability < (8, 0) or head_dim > WIDEST_FLASH:
        return "efficient"
    widest = 256 if capability == (9, 0) else 128
    return "cudnn" if capability >= (9, 0) and head_dim <= widest else "flash"


def _asked_backend(name: str, gpu: Gpu | None) -> Backend:
    """Returns the backend whose memory model applies to a kernel that the configuration names.

    Raises:
        EliteError: CONFIG_INVALID; the kernel does not run on the device.
    """
    problem = None
    if gpu is None and name != "cpu":
        problem, others = "it serves GPUs, and here the CPU trains", "cpu"
    elif gpu is not None and name == "cpu":
        problem, others = "it serves CPUs, and here a GPU trains", "efficient, flash or cudnn"
    elif gpu is not None and name != "efficient" and (gpu.compute_capability or (8, 0)) < (8, 0):
        problem, others = f"it needs an Ampere card or newer, and {gpu.name} is older", "efficient"
    if problem is not None:
        raise CONFIG_INVALID(
            source="configuration",
            field="stream.attention",
            problem=f"{name}: {problem}",
            remedy=f"leave it out, or use {others}",
        )
    kernels: dict[str, Backend] = {"cudnn": "cudnn", "flash": "flash", "flash-attn": "flash", "cpu": "cpu"}
    kernels["flash-attn-4"] = "cudnn"  # needs no more memory, and is about as fast (docs/benchmarks.md)
    return kernels.get(name, "efficient")


def _matrix_workspaces(gpu: Gpu | None) -> int:
    """Workspace bytes of two threads: 32 MiB each from Hopper on, 8,320 KiB before (torch's defaults for cuBLAS)."""
    if gpu is None:
        return 0
    return 2 * (32 * 1024 if (gpu.compute_capability or (8, 0)) >= (9, 0) else 8320) * 1024


def without_gpu(machine: Machine) -> Machine:
    """Returns the machine as a run with model.device cpu sees it."""
    return dataclasses.replace(machine, gpus=())
