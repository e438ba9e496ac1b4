"""Chooses the number of ranks of a run, and the strategy by which they share its work. No torch."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from engine.config.hosts import Host, hosts_of
from engine.errors.distributed import GPUS_MISSING, STRATEGY_UNAVAILABLE
from engine.hardware.rank_place import Ranks

if TYPE_CHECKING:
    from engine.config import RunConfig
    from engine.hardware.machine import Machine
    from engine.models.spec import ModelSpec

Strategy = Literal["data", "zero2", "zero3", "ring", "ulysses"]


def ranks_to_start(config: RunConfig, machine: Machine | None = None) -> Ranks:
    """Returns the ranks that a launcher starts. A rank learns their number from its launcher (`ProcessGroup.ranks`).

    Args:
        config: The run's configuration.
        machine: This host with every GPU that the run may use; None: detect it, where the answer depends on it.

    Raises:
        EliteError: GPUS_MISSING, HOSTFILE_INVALID.
    """
    hosts = hosts_to_start(config, machine)
    return Ranks(here=hosts[0].slots, all=sum(host.slots for host in hosts))


def hosts_to_start(config: RunConfig, machine: Machine | None = None) -> list[Host]:
    """Returns the same by host, this one first.

    Raises:
        EliteError: GPUS_MISSING, HOSTFILE_INVALID.
    """
    if machine is None and config.distributed.gpus == 1 and not config.distributed.hostfile:
        return hosts_of(config, 1)
    found = 0 if config.model.device == "cpu" else len((machine or _read_machine()).gpus)
    hosts = hosts_of(config, config.distributed.gpus or max(1, found))
    if found and hosts[0].slots > found:
        raise GPUS_MISSING(wanted=hosts[0].slots, found=found)
    return hosts


def _read_machine() -> Machine:
    from engine.hardware.inventory import take_inventory

    return take_inventory(Path.cwd())


def is_distributed(config: RunConfig) -> bool:
    """Whether a run about to start takes more than one rank."""
    return bool(config.distributed.hostfile) or ranks_to_start(config).all > 1


def choose_strategy(config: RunConfig, spec: ModelSpec, *, ranks: int, streamed: bool, spreads: bool) -> Strategy:
    """Chooses the strategy by which `ranks` processes share the work of an update.

    Args:
        config: The run's configuration.
        spec: The model.
        ranks: Number of processes.
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
        raise STRATEGY_UNAVAILABLE(strategy=asked, problem=problem, remedy=remedy)
    return asked


def sharding_refusal(spec: ModelSpec) -> str | None:
    """Returns why ranks cannot share one window of a model; None where they can."""
    if spec.recurrent is not None:
        return "the states of its recurrent layers are not passed from rank to rank"
    if spec.layer_input or any(kind.use != "own" for kind in spec.attentions):
        return "its layers share keys and values, or have inputs of their own, which ranks do not exchange"
    if spec.softcap is not None:
        return "its attention scores are capped, which kernels that ranks share do not do"
    return None


def undivided_heads(spec: ModelSpec, ranks: int) -> str | None:
    """Returns which heads of a layer ranks cannot share evenly; None where each rank takes as many of every layer."""
    for kind in spec.attentions:
        if kind.heads % ranks or kind.kv_heads % ranks:
            return f"{kind.heads} query and {kind.kv_heads} key heads do not divide by {ranks} ranks"
    return None


def _refusal(asked: Strategy, config: RunConfig, spec: ModelSpec, *, ranks: int, streamed: bool) -> tuple[str, str]:
    auto = "use --set distributed.strategy=auto"
    if asked in ("ring", "ulysses"):
        if problem := sharding_refusal(spec):
            return problem, "use --set distributed.strategy=data"
        if not streamed:
            return "it runs over the streamed step's tiles", "add --set training.step=streamed"
        if config.distributed.compression != "none":
            return "compression is for data parallel", "add --set distributed.compression=none"
    if asked == "ulysses" and (problem := undivided_heads(spec, ranks)):
        return problem, "use --set distributed.strategy=ring"
    if asked in ("zero2", "zero3"):
        if importlib.util.find_spec("deepspeed") is None:
            return "the package deepspeed is not installed", "run `pip install 'elite-tui[deepspeed]'`"
        if streamed:
            return "DeepSpeed runs whole windows", "add --set training.step=whole, or " + auto
        for setting, plain in NOT_WITH_ZERO.items():
            section, _, name = setting.partition(".")
            if getattr(getattr(config, section), name) not in plain:
                return f"DeepSpeed owns gradients and weights, {setting} cannot act on them", (
                    f"add --set {setting}={plain[0]}".lower() + ", or " + auto
                )
    return "", ""


NOT_WITH_ZERO: dict[str, tuple[object, ...]] = {
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
"""Settings that need whole gradients or weights in every rank, with the values that switch them off."""
