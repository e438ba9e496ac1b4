"""Builds `deepspeed.json`, the DeepSpeed configuration of a run.

https://www.deepspeed.ai/docs/config-json/ (DeepSpeed 0.19) documents the keys. Nothing here needs DeepSpeed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.config import RunConfig

DEFAULT_TOKENS_PER_UPDATE = 8192


def deepspeed_config(config: RunConfig, context: int | None = None, ranks: int = 1) -> dict[str, Any]:
    """Builds the configuration of the run's own DeepSpeed engine for strategy zero2 or zero3 (engine.steps.zero_step).

    For other strategies it serves people who continue to train with DeepSpeed. It is then ZeRO stage 2 for one process,
    with the optimizer states offloaded to the host if a GPU trains.

    Args:
        config: Configuration of the run.
        context: Tokens per window. None, before it is chosen, means `training.context` or one default update's tokens.
        ranks: Number of processes.
    """
    if config.distributed.strategy in ("zero2", "zero3"):
        return _of_this_run(config, ranks)
    on_gpu = config.model.device != "cpu"
    window = context or config.training.context or DEFAULT_TOKENS_PER_UPDATE
    tokens = config.training.tokens_per_update or max(DEFAULT_TOKENS_PER_UPDATE, window)
    # As in engine.data.window_source, an update takes windows until they hold at least this many tokens.
    windows_per_update = -(-tokens // window)
    precision = config.model.precision
    zero: dict[str, Any] = {
        "stage": 2,
        "contiguous_gradients": True,
        "overlap_comm": on_gpu,
        "reduce_scatter": True,
    }
    if on_gpu:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    return {
        "train_batch_size": windows_per_update,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": windows_per_update,
        "gradient_clipping": _clipping(config),
        # 4-bit weights compute in bf16, as does `auto` on a GPU that has it.
        "bf16": {"enabled": precision == "bf16" or (on_gpu and precision in ("auto", "nf4"))},
        "fp16": {"enabled": precision == "fp16"},
        "zero_optimization": zero,
        # torch's AdamW needs no compiler; DeepSpeed would otherwise compile its own on first use.
        "zero_force_ds_cpu_optimizer": False,
        "optimizer": {
            "type": "AdamW",
            "params": {
                # Unset until a plan has chosen it; "auto" leaves it to accelerate and transformers' Trainer.
                "lr": "auto" if config.training.learning_rate is None else config.training.learning_rate,
                "betas": [0.9, 0.999],
                "eps": 1e-8,
                "weight_decay": config.training.weight_decay,
                "torch_adam": True,
            },
        },
        "steps_per_print": 10,
        "wall_clock_breakdown": False,
    }


def _clipping(config: RunConfig) -> float:
    """Returns the largest norm as DeepSpeed takes it: 0 for any, where JSON has no infinity."""
    norm = config.training.max_grad_norm
    return norm if math.isfinite(norm) else 0.0


def _of_this_run(config: RunConfig, ranks: int) -> dict[str, Any]:
    """Builds the zero2 or zero3 configuration. The run passes its optimiser and marks each update's last backward."""
    stage = 3 if config.distributed.strategy == "zero3" else 2
    on_gpu = config.model.device != "cpu"
    zero: dict[str, Any] = {
        "stage": stage,
        "contiguous_gradients": True,
        "overlap_comm": on_gpu,
        "reduce_scatter": True,
    }
    if stage == 3:
        # Norms are not sharded, because gathering 10,000 values costs more than keeping them.
        zero["stage3_param_persistence_threshold"] = 10_000
    where = config.distributed.offload
    if where != "none":
        target: dict[str, Any] = {"device": "cpu" if where == "host" else "nvme"}
        target |= {"nvme_path": config.output.directory} if where == "nvme" else {}
        target |= {"pin_memory": True} if on_gpu else {}
        zero["offload_optimizer"] = target
        if stage == 3:
            zero["offload_param"] = target
    return {
        "train_batch_size": ranks,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": _clipping(config),
        "bf16": {"enabled": config.model.precision == "bf16" or (on_gpu and config.model.precision == "auto")},
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1_000_000,
        "wall_clock_breakdown": False,
    }
