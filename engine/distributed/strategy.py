"""How many ranks a run has, and how they share its work. No torch."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from engine import errors
from engine.distributed.hosts import hosts_of

if TYPE_CHECKING:
    from engine.config import RunConfig
    from engine.hardware.machine import Machine
    from engine.models.spec import ModelSpec

Strategy = Literal["data", "zero2", "zero3", "ring", "ulysses"]


def local_ranks(config: RunConfig) -> int:
    """Ranks on this host.

    Raises:
        EliteError: GPUS_MISSING.
    """
    if config.distributed.gpus == 1:
        return 1
    from engine.hardware.inventory import take_inventory

    return local_ranks_of(config, take_inventory(Path.cwd()))


def local_ranks_of(config: RunConfig, machine: Machine) -> int:
    """The same on a known machine.

    Raises:
        EliteError: GPUS_MISSING.
    """
    asked, found = config.distributed.gpus, 0 if config.model.device == "cpu" else len(machine.gpus)
    if asked == 0:
        return max(1, found)
    if found and asked > found:
        raise errors.GPUS_MISSING(wanted=asked, found=found)
    return asked


def is_distributed(config: RunConfig) -> bool:
    """Whether the run takes more than one rank."""
    return bool(config.distributed.hostfile) or local_ranks(config) > 1


def world_size(config: RunConfig) -> int:
    """Ranks on all hosts.

    Raises:
        EliteError: GPUS_MISSING, HOSTFILE_INVALID.
    """
    return sum(host.slots for host in hosts_of(config, local_ranks(config)))


def choose_strategy(config: RunConfig, spec: ModelSpec, *, ranks: int, streamed: bool, spreads: bool) -> Strategy:
    """How `ranks` processes share the work of an update.

    Args:
        config: The run's.
        spec: The model.
        ranks: Processes.
        streamed: Whether the plan streams windows tile by tile.
        spreads: Whether the plan spreads each window over all ranks.

    Raises:
        EliteError: STRATEGY_UNAVAILABLE.
    """
    asked = config.distributed.strategy
    if asked == "auto":
        return "ring" if spreads and config.distributed.compression == "none" else "data"
    problem, remedy = _refusal(asked, config, spec, ranks=ranks, streamed=streamed)
    if problem:
        raise errors.STRATEGY_UNAVAILABLE(strategy=asked, problem=problem, remedy=remedy)
    return asked


def _refusal(asked: Strategy, config: RunConfig, spec: ModelSpec, *, ranks: int, streamed: bool) -> tuple[str, str]:
    auto = "use --set distributed.strategy=auto"
    if asked in ("ring", "ulysses"):
        if not streamed:
            return "it runs over the streamed step's tiles", "add --set training.step=streamed"
        if config.distributed.compression != "none":
            return "compression is for data parallel", "add --set distributed.compression=none"
    if asked == "ulysses" and (spec.heads % ranks or spec.kv_heads % ranks):
        heads = f"{spec.heads} query and {spec.kv_heads} key heads do not divide by {ranks} ranks"
        return heads, "use --set distributed.strategy=ring"
    if asked in ("zero2", "zero3"):
        if importlib.util.find_spec("deepspeed") is None:
            return "the package deepspeed is not installed", "run `pip install 'elite-tui[deepspeed]'`"
        if streamed:
            return "DeepSpeed runs whole windows", "add --set training.step=whole, or " + auto
        for setting, plain in _NOT_WITH_ZERO.items():
            section, _, name = setting.partition(".")
            if getattr(getattr(config, section), name) not in plain:
                return f"DeepSpeed owns gradients and weights, {setting} cannot act on them", (
                    f"add --set {setting}={plain[0]}".lower() + ", or " + auto
                )
    return "", ""


_NOT_WITH_ZERO: dict[str, tuple[object, ...]] = {
    "model.precision": ("bf16", "fp32", "auto"),
    "training.method": ("lora",),
    "training.optimizer": ("adamw",),
    "training.clipping": ("norm",),
    "training.gradient_centralization": (False,),
    "training.gradient_noise": (0.0,),
    "training.lookahead_steps": (0,),
    "training.ema_decay": (0.0,),
    "training.swa_fraction": (0.0,),
    "training.early_stopping": (0,),
    "distributed.compression": ("none",),
}
"""Settings that need whole gradients or weights in every rank, with what leaves them off."""
