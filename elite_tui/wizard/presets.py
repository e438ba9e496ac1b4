"""Applies presets, which toggle several optimisations by the same rules as one at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.errors import EliteError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.config import RunConfig
    from engine.hardware.machine import Machine
    from engine.plan.optimizations import OptimizationState

PLANNED = (
    "training.step",
    "model.precision",
    "training.recompute",
    "training.activation_bits",
    "training.tiled_mlp",
    "stream.weights",
    "stream.kv_home",
    "stream.hidden_home",
    "stream.gradient_home",
    "stream.stash_home",
    "stream.stash",
    "stream.checkpoint_every",
)
"Fields that trade memory against time; their defaults leave it to the plan."
KEEPS = ("rope_scaling",)
"Approximate rows that the exact preset leaves alone: past the trained length the model fails without it."


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One preset. Reports the optimisations that the machine does not support instead of switching them on."""

    name: str
    label: str
    sentence: str
    on: tuple[str, ...] = ()
    "Optimisations to switch on."
    off: tuple[str, ...] = ()
    defaults: tuple[str, ...] = ()
    "Fields to reset to their defaults first."
    exact: bool = False
    "Whether to switch off every approximate row."


PRESETS: tuple[Preset, ...] = (
    Preset(
        name="fastest",
        label="Fastest",
        sentence="Everything that makes a step faster and leaves its result as it is; the plan decides the rest.",
        on=("fused_kernels", "memory_tuning", "auto_batch_size"),
        off=("lookahead", "ema", "swa", "dora"),
        defaults=(*PLANNED, "training.optimizer"),
    ),
    Preset(
        name="least-memory",
        label="Least memory",
        sentence="Everything that takes less memory, approximate or not: 4-bit weights, 8-bit optimiser states, tiles.",
        on=(
            "qlora",
            "adamw_8bit",
            "streamed_backprop",
            "activation_4bit",
            "gradient_checkpointing",
            "tiled_mlp",
            "fused_kernels",
            "memory_tuning",
        ),
        off=("auto_batch_size", "lookahead", "ema", "swa", "dora"),
    ),
    Preset(
        name="exact",
        label="Exact only",
        sentence="Nothing that approximates or disturbs: 16-bit weights, plain AdamW, the exact gradient.",
        exact=True,
    ),
    Preset(
        name="defaults",
        label="Defaults",
        sentence="Every switch back to its default.",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Applied:
    """A configuration after applying a preset."""

    config: RunConfig
    left_out: Mapping[str, str]
    "Optimisation → why it was not switched."


def apply(preset: Preset, config: RunConfig, machine: Machine, states: Mapping[str, OptimizationState]) -> Applied:
    """Applies a preset to a configuration and collects the optimisations not available here."""
    from engine.config import field_spec
    from engine.plan.optimizations import is_switched_on, optimizations, toggle, with_values

    rows = {row.id: row for row in optimizations()}
    fields = preset.defaults
    if preset.name == "defaults":
        fields = tuple(path for row in rows.values() for path in row.switch_off)
    config = with_values(config, {path: field_spec(path).default for path in fields}, source=preset.label)
    off = list(preset.off)
    if preset.exact:
        off += [row.id for row in rows.values() if not row.exact and row.switch_on and row.id not in KEEPS]
    for name in off:
        if is_switched_on(config, rows[name]):
            config = toggle(config, name, on=False)
    if preset.exact:
        config = with_values(config, {"model.precision": _own_precision(machine, config)}, source=preset.label)
    left_out: dict[str, str] = {}
    for name in preset.on:
        state = states.get(name)
        if state is not None and state.state == "unavailable":
            left_out[name] = state.reason
            continue
        try:
            config = toggle(config, name, on=True)
        except EliteError as error:
            left_out[name] = error.message
    return Applied(config=config, left_out=left_out)


def _own_precision(machine: Machine, config: RunConfig) -> str:
    """Returns the widest weight type that this machine can compute with, since auto could choose 4 bits."""
    if not machine.gpus or config.model.device == "cpu":
        return "fp32"
    return "bf16" if machine.gpus[0].has_bf16 else "fp16"
