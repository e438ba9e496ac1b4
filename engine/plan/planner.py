"""The planner: for each tier the fastest plan that fits, or the reason why none does and what would change it."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from engine import errors
from engine.hardware.machine import Gpu, Machine
from engine.models.families import FUSED, STREAMED
from engine.models.spec import ModelSpec
from engine.plan.memory import Part
from engine.plan.parts import BaseWeights, Place
from engine.plan.quantities import format_bytes, format_seconds
from engine.plan.search import HEADROOM, Budget, Candidate, Recompute, Way, search
from engine.plan.stream_plan import StreamPlan
from engine.plan.tiers import tiers
from engine.plan.time import CPU_ATTENTION_EFFICIENCY, TimePart, attention_efficiency
from engine.plan.workload import Backend, ComputeType, Workload

PATIENCE_GPU = 10 * 3600.0
"Seconds that one window of the recommended tier may take on a GPU: a night."
PATIENCE_CPU = 60.0
"And without a GPU, where long contexts are a demonstration."
UPDATES_CPU = 8
"Updates that an epoch keeps at least without a GPU: a short run should learn something."
TOKENS_PER_UPDATE = 8192
"Default of training.tokens_per_update, unless one window is larger."
SMALL_CONTEXTS = (512, 1024, 2048)
"Contexts below tier 1, for machines that cannot do tier 1."


LEAST_SHARE = 4096
"Tokens of a window for each rank, from which on auto spreads it: with fewer, a layer's messages cost too much."

Method = Literal["lora", "full"]
"""What is trained: an adapter, or every weight."""


@dataclass(frozen=True, kw_only=True)
class TierPlan:
    """One row of the tier table."""

    tier: int | None
    "None for a context that is no tier's."
    context: int
    sees: str
    extreme: bool
    fits: bool
    reason: str
    "Why it does not fit; or what else to know about it."
    remedy: str
    "The cheapest changes that would make it fit; empty where it does."
    gpu_peak_bytes: int
    host_peak_bytes: int
    disk_bytes: int
    step_seconds: float
    "One optimiser update, which may gather several windows."
    windows_per_step: int
    steps_per_epoch: int | None
    "None where the repository's size is not known."
    holds_repository: bool
    precision: str
    plan: dict[str, Any]
    "The choices, as JSON values."
    stream: StreamPlan | None
    "The streamed step's choices; None for the ordinary path."
    parts: tuple[Part, ...]
    time: tuple[TimePart, ...]
    "Of one window."
    in_time: bool
    "Whether it fits and one window takes no longer than the recommendation allows."

    @property
    def master_home(self) -> Literal["gpu", "host"] | None:
        """Where every weight is trained: the home of the fp32 ones; None for an adapter."""
        home: Literal["gpu", "host"] | None = self.plan.get("master_home")
        return home


@dataclass(frozen=True, kw_only=True)
class TierTable:
    """Every tier on one machine for one model."""

    recommended: int | None
    "Highest tier that fits, in reasonable time, and is not above the smallest that holds the repository."
    tiers: tuple[TierPlan, ...]

    def row(self, tier: int) -> TierPlan:
        """The row of one tier.

        Raises:
            KeyError: there is none.
        """
        return {row.tier: row for row in self.tiers}[tier]


@dataclass(frozen=True, kw_only=True)
class Planning:
    """What stays the same for every context of one table."""

    machine: Machine
    spec: ModelSpec
    compute_type: ComputeType
    weights: tuple[BaseWeights, ...]
    lora_rank: int
    lora_targets: tuple[str, ...] = ("all-linear",)
    repository_tokens: int | None = None
    held_out_fraction: float = 0.1
    tokens_per_update: int = TOKENS_PER_UPDATE
    way: Way = "auto"
    activation_bits: Literal[16, 8, 4] = 16
    recompute: Recompute = "auto"

    method: Method = "lora"
    "What is trained: an adapter, or every weight."
    ranks: int = 1
    "Processes on all hosts; `machine` is then what one of them may use."
    strategy: str = "auto"
    "distributed.strategy."
    rank_link: float = 10e9
    "Bytes a second from a rank to the next."

    def window_ranks(self, context: int) -> int:
        """Ranks that share one window: all of them, or one."""
        if self.way == "whole":
            return 1
        if self.strategy in ("ring", "ulysses"):
            return self.ranks
        windows = max(1, math.ceil(self.tokens_per_update / context))
        spread = self.strategy == "auto" and windows < self.ranks and context // self.ranks >= LEAST_SHARE
        return self.ranks if spread and streaming_refusal(self.spec, context) is None else 1

    @property
    def on_gpu(self) -> bool:
        """Whether the first GPU does the work."""
        return bool(self.machine.gpus)

    @property
    def patience(self) -> float:
        """Seconds that one window of the recommended tier may take."""
        return PATIENCE_GPU if self.on_gpu else PATIENCE_CPU


def storage(machine: Machine, precision: str, method: Method = "lora") -> tuple[ComputeType, tuple[BaseWeights, ...]]:
    """What a precision means on a machine: the compute type, and the storages of the base weights to choose from.

    Raises:
        EliteError: PRECISION_UNAVAILABLE; of weights that are trained themselves, in 4 bits.
    """
    if method == "full" and precision == "nf4":
        raise errors.PRECISION_UNAVAILABLE(
            precision="nf4",
            problem="weights stored in 4 bits cannot be trained themselves",
            remedy="use bf16 or auto, or training.method=lora",
        )
    compute_type, weights = _storages(machine, precision)
    return compute_type, tuple(each for each in weights if method == "lora" or each != "nf4")


def _storages(machine: Machine, precision: str) -> tuple[ComputeType, tuple[BaseWeights, ...]]:
    if not machine.gpus:
        if precision == "fp16":
            raise errors.PRECISION_UNAVAILABLE(
                precision="fp16", problem="processors do not train in it", remedy="use fp32, bf16 or auto"
            )
        return "bf16" if precision == "bf16" else "fp32", ("nf4",) if precision == "nf4" else ("resident",)
    gpu = machine.gpus[0]
    if precision == "bf16" and not gpu.has_bf16:
        raise errors.PRECISION_UNAVAILABLE(
            precision="bf16", problem=f"{gpu.name} does not compute in it", remedy="use fp16, nf4 or auto"
        )
    half: ComputeType = "bf16" if gpu.has_bf16 else "fp16"
    if precision == "nf4":
        return half, ("nf4",)
    if precision == "auto":
        # A simulated machine has no list of libraries, and is taken to have what it needs.
        installed = machine.libraries.get("bitsandbytes", "unknown") is not None
        return half, ("resident", "streamed", "nf4") if installed else ("resident", "streamed")
    own: ComputeType = "fp32" if precision == "fp32" else "fp16" if precision == "fp16" else "bf16"
    return own, ("resident", "streamed")


def plan_tiers(
    machine: Machine,
    spec: ModelSpec,
    *,
    precision: str = "auto",
    lora_rank: int = 16,
    repository_tokens: int | None = None,
) -> TierTable:
    """The tier table, with defaults for all that it does not take.

    Raises:
        EliteError: PRECISION_UNAVAILABLE.
    """
    compute_type, weights = storage(machine, precision)
    return tier_table(
        Planning(
            machine=machine,
            spec=spec,
            compute_type=compute_type,
            weights=weights,
            lora_rank=lora_rank,
            repository_tokens=repository_tokens,
        )
    )


def tier_table(planning: Planning) -> TierTable:
    """The best plan for each tier, and which tier to recommend."""
    rows = tuple(
        plan_context(planning, tier.context, tier=tier.number, sees=tier.sees, extreme=tier.extreme) for tier in tiers()
    )
    return TierTable(recommended=_recommend(planning, rows), tiers=rows)


def _recommend(planning: Planning, rows: tuple[TierPlan, ...]) -> int | None:
    best = None
    for row in rows:
        too_few = not planning.on_gpu and row.steps_per_epoch is not None and row.steps_per_epoch < UPDATES_CPU
        if row.in_time and (best is None or not too_few):
            best = row.tier
        if row.holds_repository:
            break
    return best


def plan_context(
    planning: Planning, context: int, *, tier: int | None = None, sees: str = "", extreme: bool = False
) -> TierPlan:
    """The best plan for windows of `context` tokens, or the one that is nearest to fitting.

    Raises:
        EliteError: MODEL_FAMILY_UNSUPPORTED, where only the streamed step is wanted and it refuses the model.
    """
    budget = Budget.of(planning.machine)
    work = workload_of(planning, context)
    refusal = streaming_refusal(planning.spec, context)
    if refusal and planning.way == "streamed":
        raise errors.MODEL_FAMILY_UNSUPPORTED(
            family=planning.spec.family, feature="the streamed step", problem=refusal, supported=", ".join(STREAMED)
        )
    weights, way = planning.weights, planning.way
    if work.ranks > 1:  # only the streamed step is spread
        way = "streamed"
    elif planning.ranks > 1 and planning.strategy in ("zero2", "zero3") and way == "auto":
        way = "whole"
    if refusal:  # whole windows need all weights at once
        weights, way = tuple(storage for storage in weights if storage != "streamed"), "whole"
    works = [dataclasses.replace(work, master_home=home) for home in _master_homes(planning)]
    found = [c for each in works for c in search(each, planning.machine, budget, weights, way, planning.recompute)]
    found = [c for c in found if work.ranks == 1 or c.stream is None or c.stream.kv_home == "gpu"]
    fitting = [candidate for candidate in found if candidate.fits]
    windows = max(1, math.ceil(planning.tokens_per_update / context))
    turns = windows if work.ranks > 1 else math.ceil(windows / planning.ranks)
    in_time = [candidate for candidate in fitting if candidate.seconds <= planning.patience]
    chosen = min(in_time or fitting, key=lambda c: c.score) if fitting else min(found, key=_shortage_rank)
    seconds = turns * chosen.seconds
    tokens = planning.repository_tokens
    steps = None if tokens is None else _steps(tokens * (1 - planning.held_out_fraction), windows * context)
    reason, remedy = "", ""
    if not fitting:
        reason, remedy = _explain(found, chosen, budget)
        if refusal:
            reason = f"{reason}; tile by tile it would need less, but {refusal}"
            remedy = f"{remedy}, or a model whose family streams, such as qwen2 or llama"
    elif not in_time:
        limit = format_seconds(planning.patience)
        reason = f"one window takes about {format_seconds(chosen.seconds)}; recommended is what takes up to {limit}"
    return TierPlan(
        tier=tier,
        context=context,
        sees=sees,
        extreme=extreme,
        fits=bool(fitting),
        reason=reason,
        remedy=remedy,
        gpu_peak_bytes=chosen.ledger.peak("gpu"),
        host_peak_bytes=chosen.ledger.peak("host"),
        disk_bytes=chosen.ledger.peak("disk"),
        step_seconds=seconds,
        windows_per_step=windows,
        steps_per_epoch=steps,
        holds_repository=tokens is not None and context >= tokens,
        precision=chosen.precision,
        plan={**chosen.describe(), **({"window_ranks": work.ranks} if planning.ranks > 1 else {})},
        stream=chosen.stream,
        parts=chosen.ledger.parts,
        time=chosen.time,
        in_time=bool(in_time),
    )


def _master_homes(planning: Planning) -> tuple[Literal["gpu", "host"] | None, ...]:
    """Where the fp32 weights may live; none where an adapter is trained."""
    if planning.method == "lora":
        return (None,)
    return ("gpu", "host") if planning.on_gpu else ("host",)


def streaming_refusal(spec: ModelSpec, context: int) -> str | None:
    """Why the streamed step does not take a model at a context (engine.streaming.decoder); None where it does."""
    if spec.family not in STREAMED:
        return f"the streamed gradient of {spec.family} has not been shown to be exact"
    if spec.fixed_rope_context is not None and context > spec.fixed_rope_context:
        return f"beyond {spec.fixed_rope_context:,} tokens its rotary tables change with the length"
    return None


def _steps(tokens: float, tokens_a_step: int) -> int:
    return max(1, math.ceil(tokens / tokens_a_step))


def _shortage_rank(candidate: Candidate) -> tuple[int, int, int]:
    """A missing GPU is dearer than missing RAM, and that is dearer than missing disk."""
    return candidate.short_of("gpu"), candidate.short_of("host"), candidate.short_of("disk")


def workload_of(planning: Planning, context: int) -> Workload:
    """What windows of `context` tokens ask of the machine."""
    spec, adapter = planning.spec, planning.method == "lora"
    gpu = planning.machine.gpus[0] if planning.on_gpu else None
    # A simulated machine has no list of libraries, and is taken to have what it needs.
    liger = gpu is not None and planning.machine.libraries.get("liger-kernel", "unknown") is not None
    ranks = planning.window_ranks(context)
    return Workload(
        spec=spec,
        context=math.ceil(context / ranks),
        ranks=ranks,
        exchange="ulysses" if planning.strategy == "ulysses" else "ring",
        rank_link=planning.rank_link,
        compute_type=planning.compute_type,
        lora_parameters=spec.lora_parameters(planning.lora_rank, planning.lora_targets) if adapter else 0,
        on_gpu=planning.on_gpu,
        lora_rank=planning.lora_rank if adapter else 0,
        backend=attention_backend(gpu, spec.head_dim),
        fused_kernels=liger and spec.family in FUSED,
        fused_loss=liger,
        workspaces=_matrix_workspaces(gpu),
        gpu_context=planning.machine.measured.gpu_context if planning.machine.measured else None,
        attention_efficiency=attention_efficiency(gpu, spec.head_dim) if gpu else CPU_ATTENTION_EFFICIENCY,
        repository_tokens=planning.repository_tokens or 0,
        activation_bits=planning.activation_bits,
    )


def attention_backend(gpu: Gpu | None, head_dim: int) -> Backend:
    """The kernel that is taken to win the race of `engine.attention.select` on a card."""
    if gpu is None:
        return "cpu"
    capability = gpu.compute_capability or (8, 0)
    if capability < (8, 0):
        return "efficient"
    return "cudnn" if capability >= (9, 0) and head_dim <= 128 else "flash"


def _matrix_workspaces(gpu: Gpu | None) -> int:
    """Of two threads: 32 MiB each from Hopper on, 8,320 KiB before (torch's defaults for cuBLAS)."""
    if gpu is None:
        return 0
    return 2 * (32 * 1024 if (gpu.compute_capability or (8, 0)) >= (9, 0) else 8320) * 1024


def _explain(found: list[Candidate], closest: Candidate, budget: Budget) -> tuple[str, str]:
    """Why nothing fits, and the cheapest changes that would let something fit."""
    on_device = [candidate for candidate in found if not candidate.short_of("gpu")]
    if not on_device:
        needed = closest.ledger.peak("gpu")
        reason = f"the leanest plan needs {format_bytes(needed)} on the GPU, and {format_bytes(budget.gpu)} can be used"
        return reason, f"a GPU with {_lacking(closest, 'gpu')} more free memory, or a smaller model"
    in_ram = [candidate for candidate in on_device if not candidate.short_of("disk")]
    on_disk = [candidate for candidate in on_device if candidate.short_of("disk")]
    changes = []
    if in_ram:
        changes.append(f"{_lacking(min(in_ram, key=lambda c: c.short_of('host')), 'host')} more RAM")
    if on_disk:
        leanest = min(on_disk, key=lambda c: (c.short_of("host"), c.short_of("disk")))
        both = f"{_lacking(leanest, 'host')} more RAM and " if leanest.short_of("host") else ""
        changes.append(f"{both}{_lacking(leanest, 'disk')} more free disk (hidden_home disk)")
    where = closest.shortages[0][0]
    place = "RAM" if where == "host" else "free disk"
    reason = (
        f"the leanest plan needs {format_bytes(closest.ledger.peak(where))} of {place}, "
        f"and {format_bytes(budget.limit(where))} can be used"
    )
    return reason, "needs " + ", or ".join(changes)


def _lacking(candidate: Candidate, where: Place) -> str:
    """What must be added in a place; of what is added, too, a share stays free."""
    return format_bytes(candidate.short_of(where) / (1 - HEADROOM))


def largest_context(planning: Planning, *, step: int = 1024) -> TierPlan | None:
    """The largest context, in multiples of `step` and at most twice the highest tier, that fits; None if none does."""
    low, high = 0, 2 * tiers()[-1].context // step
    best = None
    while low < high:
        middle = (low + high + 1) // 2
        row = plan_context(planning, middle * step)
        if row.fits:
            low, best = middle, row
        else:
            high = middle - 1
    return best


def without_gpu(machine: Machine) -> Machine:
    """The same machine, as a run with model.device cpu sees it."""
    return dataclasses.replace(machine, gpus=())
