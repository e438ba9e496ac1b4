"""Decides whether an optimisation acts in a run on a machine, why, and its effect by the ledger and time model."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from engine.config import RunConfig
from engine.errors.planning import StreamPlanError
from engine.hardware.machine import Machine
from engine.models.fim_support import can_fill_in
from engine.models.spec import ModelSpec
from engine.plan.choice import Choice, request_of_run
from engine.plan.memory import streamed_ledger
from engine.plan.optimizations import Optimization, OptimizationState, find_optimization, is_switched_on, optimizations
from engine.plan.request import workload_of
from engine.plan.speeds import speeds_of
from engine.plan.stream_plan import Home, StreamPlan, base_weights
from engine.plan.time import streamed_time, total_seconds
from engine.plan.workload import Workload

Word = Literal["on", "off", "unavailable"]


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """A run on a machine, with the choices made so far. Arguments of `states`."""

    config: RunConfig
    machine: Machine
    spec: ModelSpec
    choice: Choice | None

    @property
    def on_gpu(self) -> bool:
        """Whether the first GPU trains."""
        return bool(self.machine.gpus) and self.config.model.device != "cpu"

    @property
    def stream(self) -> StreamPlan | None:
        """The streamed step's plan; None for whole windows, or before a plan is chosen."""
        return self.choice.plan.layout.stream if self.choice else None

    @property
    def precision(self) -> str:
        """Storage type of the base weights."""
        return self.choice.plan.layout.precision if self.choice else self.config.model.precision

    @functools.cached_property
    def work(self) -> Workload | None:
        """The workload of one window; None before a context is chosen."""
        if self.choice is None:
            return None
        work = workload_of(request_of_run(self.config, self.machine, self.spec, None), self.choice.context)
        return dataclasses.replace(work, master_home=self.choice.plan.layout.master_home)


# --- requirements of a row: machine and model ----------------------------------------------------------------


def _needs_gpu(run_context: RunContext) -> str | None:
    return None if run_context.on_gpu else "it works on a GPU; here the CPU trains"


def _needs_several_gpus(run_context: RunContext) -> str | None:
    count = len(run_context.machine.gpus)
    return None if count > 1 else f"it works across processes with a GPU each; this machine has {count or 'none'}"


def _needs_library(name: str, extra: str) -> Callable[[RunContext], str | None]:
    def check(run_context: RunContext) -> str | None:
        # A simulated machine has no list of libraries; assume that it has every one.
        installed = run_context.machine.libraries.get(name, "unknown") is not None
        return None if installed else f"the package {name} is not installed: pip install 'elite-tui[{extra}]'"

    return check


def _needs_compiler(run_context: RunContext) -> str | None:
    if run_context.machine.simulated or any(map(shutil.which, ("cc", "gcc", "clang"))):
        return None
    return "it compiles with a C compiler, and none was found: install gcc"


def _needs_separate_heads(run_context: RunContext) -> str | None:
    spec = run_context.spec
    if spec.kv_heads == spec.heads and not spec.fused_projections:
        return None
    if spec.kv_heads < spec.heads:
        return f"{spec.name} is built this way: {spec.kv_heads} key heads for {spec.heads} query heads"
    return f"{spec.name} projects queries, keys and values in one layer"


def _needs_adapter(run_context: RunContext) -> str | None:
    full = run_context.config.training.method == "full"
    return "training.method=full trains every weight: there is no adapter" if full else None


def _needs_fim_tokens(run_context: RunContext) -> str | None:
    lacks = can_fill_in(run_context.spec) is False
    return f"the tokenizer of {run_context.spec.name} has no tokens for it" if lacks else None


def _needs_whole_windows(run_context: RunContext) -> str | None:
    return None if run_context.stream is None else "the streamed step computes a tile at a time again, by itself"


NEEDS: Mapping[str, Callable[[RunContext], str | None]] = {
    "adapter": _needs_adapter,
    "gpu": _needs_gpu,
    "several_gpus": _needs_several_gpus,
    "bitsandbytes": _needs_library("bitsandbytes", "quant"),
    "liger-kernel": _needs_library("liger-kernel", "gpu"),
    "deepspeed": _needs_library("deepspeed", "deepspeed"),
    "compiler": _needs_compiler,
    "separate_heads": _needs_separate_heads,
    "whole_windows": _needs_whole_windows,
    "fim_tokens": _needs_fim_tokens,
}
"""Maps each need to a check that returns the reason why a run lacks it, with the remedy, or None."""


# --- rows that the plan decides ------------------------------------------------------------------------------


def _by_stream(
    field: str, test: Callable[[StreamPlan], bool], used: str, unused: str
) -> Callable[[RunContext], tuple[bool, str]]:
    def decide(run_context: RunContext) -> tuple[bool, str]:
        if run_context.stream is None:
            return False, "whole windows fit: the step is not streamed"
        on = test(run_context.stream)
        if getattr(run_context.config.stream, field) is not None:
            return on, "switched on" if on else "switched off"
        return on, used if on else unused

    return decide


def _streamed(run_context: RunContext) -> tuple[bool, str]:
    if run_context.stream is None:
        asked = run_context.config.training.step == "whole"
        return False, "switched off" if asked else "the plan takes whole windows, which are faster here"
    asked = run_context.config.training.step == "streamed"
    return True, "switched on" if asked else "the plan streams the step"


def _quantised(run_context: RunContext) -> tuple[bool, str]:
    on = run_context.precision == "nf4"
    asked = run_context.config.model.precision == "nf4"
    return on, "switched on" if asked else "the plan stores the weights in 4 bits" if on else "16 or 32 bits are stored"


def _mixed(run_context: RunContext) -> tuple[bool, str]:
    work = run_context.work
    kind = work.compute_type if work else run_context.precision
    on = kind in ("bf16", "fp16") or (run_context.on_gpu and kind in ("auto", "nf4"))
    return on, f"computes in {kind}" if kind != "fp32" else "the CPU computes in fp32"


def _recomputing(run_context: RunContext) -> tuple[bool, str]:
    way = run_context.config.training.recompute
    if way != "auto":
        return way == "always", "switched on" if way == "always" else "switched off"
    if run_context.choice is None:
        return True, "where keeping all activations does not fit"
    on = run_context.choice.plan.layout.recompute
    return on, "keeping all activations does not fit" if on else "all activations fit"


def _stretched(run_context: RunContext) -> tuple[bool, str]:
    trained = run_context.spec.max_context
    if run_context.choice is None or run_context.choice.context <= trained:
        return False, f"windows are no longer than the {trained:,} tokens that the model was trained with"
    factor = run_context.choice.context / trained
    asked = run_context.config.model.rope_scaling == "auto"
    return asked, f"positions are stretched {factor:g} times" if asked else "switched off"


def _grouped(run_context: RunContext) -> tuple[bool, str]:
    spec = run_context.spec
    if spec.kv_heads < spec.heads:
        return True, f"the model has {spec.kv_heads} key heads for {spec.heads} query heads"
    wanted = run_context.config.model.kv_heads
    return wanted is not None, f"pooled to {wanted} heads" if wanted else "switched off"


def _filled_in(run_context: RunContext) -> tuple[bool, str]:
    share = run_context.config.data.fim
    if share is not None:
        return bool(share), "switched on" if share else "switched off"
    known = can_fill_in(run_context.spec)
    if known is None:
        return True, "where the model's tokenizer has tokens for it"
    return known, f"the tokenizer of {run_context.spec.name} has {'' if known else 'no '}tokens for it"


_DECIDED: Mapping[str, Callable[[RunContext], tuple[bool, str]]] = {
    "streamed_backprop": _streamed,
    "paged_kv": _by_stream(
        "kv_home", lambda p: p.kv_home == "host", "pages are on the host", "the GPU has room for one layer's"
    ),
    "attention_stash": _by_stream(
        "stash", lambda p: p.stash, "attention is never repeated", "the host has no room for it"
    ),
    "selective_checkpointing": _by_stream(
        "checkpoint_every",
        lambda p: p.checkpoint_every > 1,
        "some layers' inputs are computed again",
        "there is room for every layer's",
    ),
    "activation_offload": _by_stream(
        "hidden_home", lambda p: p.hidden_home != "gpu", "hidden states leave the GPU", "the GPU has room for them"
    ),
    "weight_streaming": _by_stream(
        "weights", lambda p: p.streams_weights, "layers wait on the host", "the GPU has room for the weights"
    ),
    "qlora": _quantised,
    "mixed_precision": _mixed,
    "gradient_checkpointing": _recomputing,
    "rope_scaling": _stretched,
    "gqa": _grouped,
    "fim": _filled_in,
    "lr_range_test": lambda _: (False, "`engine lr-range` runs it"),
}


# --- effects -------------------------------------------------------------------------------------------------


def _plan_pair(row: str, plan: StreamPlan) -> tuple[StreamPlan, StreamPlan] | None:
    """Returns the plan with and without a row's option; None where the pair is not a valid plan."""
    replace = dataclasses.replace
    narrow = plan.activation_bits if plan.activation_bits < 16 else 4
    every = plan.checkpoint_every if plan.checkpoint_every > 1 else 2
    near = plan.hidden_home == "gpu"
    gradient = _off_gpu(plan.gradient_home)  # which would grow with the context
    pairs: dict[str, Callable[[], tuple[StreamPlan, StreamPlan]]] = {
        "paged_kv": lambda: (replace(plan, kv_home="host", gradient_home=gradient), replace(plan, kv_home="gpu")),
        "attention_stash": lambda: (replace(plan, stash=True), replace(plan, stash=False)),
        "selective_checkpointing": lambda: (replace(plan, checkpoint_every=every), replace(plan, checkpoint_every=1)),
        "activation_4bit": lambda: (replace(plan, activation_bits=narrow), replace(plan, activation_bits=16)),
        "activation_offload": lambda: (
            replace(plan, hidden_home="host", gradient_home=gradient) if near else plan,
            plan if near else replace(plan, hidden_home="gpu", gradient_home="gpu"),
        ),
    }
    if row not in pairs:
        return None
    try:
        return pairs[row]()
    except StreamPlanError:
        return None


def _off_gpu(home: Home) -> Home:
    return "host" if home == "gpu" else home


def _state_bytes(row: Optimization, parameters: int) -> int | None:
    """Signed bytes on a run's device for a row that adds optimiser states, or shrinks them."""
    copies = {"ema": 4, "swa": 4, "lookahead": 4, "adamw_8bit": -6}
    return copies[row.id] * parameters if row.id in copies else None


def _effects(row: Optimization, run_context: RunContext) -> tuple[int | None, int | None, float | None]:
    """Returns GPU bytes, host bytes and seconds per update, on minus off."""
    work, choice = run_context.work, run_context.choice
    if work is None or choice is None:
        return None, None, None
    if (extra := _state_bytes(row, work.lora_parameters or work.spec.parameters)) is not None:
        return (extra, None, None) if run_context.on_gpu else (None, extra, None)
    if row.id == "weight_streaming" and run_context.stream is not None:
        resident, streamed = _weights_pair(run_context.stream)
        return _difference(work, run_context, streamed, resident, choice.plan.windows_per_step)
    pair = _plan_pair(row.id, run_context.stream) if run_context.stream is not None else None
    return (None, None, None) if pair is None else _difference(work, run_context, *pair, choice.plan.windows_per_step)


def _weights_pair(plan: StreamPlan) -> tuple[StreamPlan, StreamPlan]:
    four_bit = plan.four_bit_weights
    resident = base_weights(four_bit=four_bit, streamed=False)
    kept = dataclasses.replace(plan, weights=resident, weights_home="host")  # a disk is read by streaming alone
    away = base_weights(four_bit=four_bit, streamed=True)
    return kept, dataclasses.replace(plan, weights=away, keep_layers=0)


def _difference(
    work: Workload, run_context: RunContext, on: StreamPlan, off: StreamPlan, windows: int
) -> tuple[int, int, float]:
    with_it, without = streamed_ledger(work, on), streamed_ledger(work, off)
    speeds = speeds_of(run_context.machine, work)
    seconds = [total_seconds(streamed_time(work, plan, speeds)) for plan in (on, off)]
    return (
        with_it.peak("gpu") - without.peak("gpu"),
        with_it.peak("host") - without.peak("host"),
        windows * (seconds[0] - seconds[1]),
    )


# --- all rows ------------------------------------------------------------------------------------------------


def states(
    config: RunConfig, machine: Machine, spec: ModelSpec, choice: Choice | None
) -> tuple[OptimizationState, ...]:
    """Returns the state of every optimisation in a run, in the order of `optimizations()`.

    Args:
        config: The run.
        machine: Where it would run.
        spec: Its model.
        choice: Its context and plan; None before they are chosen, when rows that the plan decides are "off".
    """
    run_context = RunContext(config=config, machine=machine, spec=spec, choice=choice)
    return tuple(state_of(row, run_context) for row in optimizations())


def state_of(row: Optimization, run_context: RunContext) -> OptimizationState:
    """Returns the state of one row."""
    on, reason = _decide(row, run_context)
    lacking = None if on and row.id == "gqa" else _lacking(row, run_context)
    if lacking is not None:
        return OptimizationState(id=row.id, state="unavailable", reason=lacking)
    gpu, host, seconds = _effects(row, run_context)
    word: Word = "on" if on else "off"
    return OptimizationState(id=row.id, state=word, reason=reason, gpu_bytes=gpu, host_bytes=host, step_seconds=seconds)


def _decide(row: Optimization, run_context: RunContext) -> tuple[bool, str]:
    if row.id in _DECIDED:
        return _DECIDED[row.id](run_context)
    if not row.switch_on:
        return True, "always at work"
    on = is_switched_on(run_context.config, row)
    return on, "switched on" if on else "switched off"


def _acts(row: Optimization, run_context: RunContext) -> bool:
    """Whether the row is on and has what it needs."""
    return _decide(row, run_context)[0] and all(NEEDS[need](run_context) is None for need in row.needs)


def _lacking(row: Optimization, run_context: RunContext) -> str | None:
    """Returns the reason why the row cannot act in this run, or None."""
    for need in row.needs:
        if (reason := NEEDS[need](run_context)) is not None:
            return reason
    if run_context.choice is not None:
        if "streamed_backprop" in row.requires and run_context.stream is None:
            return "it is a part of the streamed step, and the plan takes whole windows"
        if "streamed_backprop" in row.conflicts and run_context.stream is not None:
            return row.conflict_reasons["streamed_backprop"]
    for other in row.conflicts:
        if other == "streamed_backprop":
            continue
        if _acts(find_optimization(other), run_context) and not _decide(row, run_context)[0]:
            return f"{row.conflict_reasons[other]} ({other} is on)"
    return None
