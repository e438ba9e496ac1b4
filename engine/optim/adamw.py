"""AdamW (arXiv 1711.05101) over the trained fp32 weights, plain, in 8 bits, or with LoRA+'s two rates."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from peft.optimizers import create_loraplus_optimizer
from torch.optim import AdamW, Optimizer

from engine.errors.planning import OPTIMIZATION_UNAVAILABLE
from engine.models.fine_tuning import FineTuning, FullTuning
from engine.optim.decay import spare_vectors

if TYPE_CHECKING:
    from engine.config import RunConfig


def adamw(tuning: FineTuning, config: RunConfig, learning_rate: float) -> Optimizer:
    """Makes the optimiser of a run.

    In an adapter, weight decay acts on A and B alike. It pulls the update B·A towards zero, not the base weights.
    Vectors do not decay, neither an adapter's nor a whole model's (engine.optim.decay).

    Args:
        tuning: Owns the trained weights.
        config: `training.optimizer`, `training.weight_decay` and `lora.plus_ratio` are read.
        learning_rate: Peak rate, that of A where A and B differ.

    Raises:
        EliteError: OPTIMIZATION_UNAVAILABLE when bitsandbytes is needed and not installed.
    """
    kind, decay = optimizer_type(config.training.optimizer), config.training.weight_decay
    made: Optimizer
    # One kernel for all weights, where small ones of a list of some hundred take milliseconds to launch.
    fused = kind is AdamW and all(weight.is_cuda for weight in tuning.weights.values())
    settings: dict[str, Any] = {"lr": learning_rate, **({"fused": True} if fused else {})}
    if isinstance(tuning, FullTuning) or config.lora.plus_ratio == 1.0:
        made = kind(list(tuning.weights.values()), weight_decay=decay, **settings)  # type: ignore[call-arg]
    else:
        ratio = config.lora.plus_ratio
        made = create_loraplus_optimizer(
            tuning.model, kind, loraplus_lr_ratio=ratio, loraplus_weight_decay=decay, **settings
        )
    spare_vectors(made)
    return made


def optimizer_type(name: str) -> type[Optimizer]:
    """Returns the class of `training.optimizer`; 8-bit states are block-wise quantised (arXiv 2110.02861).

    Raises:
        EliteError: OPTIMIZATION_UNAVAILABLE when bitsandbytes is needed and not installed.
    """
    if name == "adamw":
        return AdamW
    if importlib.util.find_spec("bitsandbytes") is None:
        raise OPTIMIZATION_UNAVAILABLE(
            id="adamw_8bit",
            reason="the package bitsandbytes is not installed",
            remedy="run `pip install 'elite-tui[quant]'`, or set training.optimizer=adamw",
        )
    from bitsandbytes.optim import AdamW8bit, PagedAdamW8bit

    chosen: type[Optimizer] = AdamW8bit if name == "adamw_8bit" else PagedAdamW8bit
    return chosen
