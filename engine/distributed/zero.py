"""ZeRO (arXiv 1910.02054, 2101.06840) through accelerate and DeepSpeed: what each process need not hold itself."""

from __future__ import annotations

import importlib.util
import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from engine import errors

if TYPE_CHECKING:
    from accelerate import Accelerator


def zero_config(
    stage: Literal[2, 3], *, offload: bool, micro_batch: int, max_grad_norm: float = 1.0, bf16: bool = False
) -> dict[str, Any]:
    """DeepSpeed's configuration for a stage.

    Args:
        stage: 2 shards gradients and optimiser states, 3 the weights as well.
        offload: Keep the sharded states, and with stage 3 the weights, in host memory.
        micro_batch: Sequences a process takes at once.
        max_grad_norm: Gradients with a larger norm are scaled down to it.
        bf16: Compute in bf16.
    """
    zero: dict[str, Any] = {"stage": stage, "contiguous_gradients": True}
    if stage == 3:
        zero |= {"stage3_param_persistence_threshold": 0, "stage3_gather_16bit_weights_on_model_save": True}
    if offload:
        zero["offload_optimizer"] = {"device": "cpu"}
        if stage == 3:
            zero["offload_param"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": max_grad_norm,
        "bf16": {"enabled": bf16},
        "zero_optimization": zero,
        # The optimiser is torch's: DeepSpeed would otherwise compile its own at first use.
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
    }


def zero_accelerator(config: dict[str, Any], *, backend: str) -> Accelerator:
    """An accelerator whose `prepare` shards model and optimiser.

    Args:
        config: Of `zero_config`.
        backend: "nccl" with GPUs, "gloo" without.

    Raises:
        EliteError: OPTIMIZATION_UNAVAILABLE without DeepSpeed.
    """
    if importlib.util.find_spec("deepspeed") is None:
        raise errors.OPTIMIZATION_UNAVAILABLE(
            id=f"zero{config['zero_optimization']['stage']}",
            reason="the package deepspeed is not installed",
            remedy="run `pip install 'elite-tui[gpu]'`",
        )
    if backend == "gloo":
        os.environ["DS_ACCELERATOR"] = "cpu"
    from accelerate import Accelerator, DeepSpeedPlugin, InitProcessGroupKwargs

    # Not Accelerator(cpu=True), which would leave DeepSpeed out without a word.
    return Accelerator(
        deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=config),
        kwargs_handlers=[InitProcessGroupKwargs(backend=backend, timeout=timedelta(minutes=5))],
    )
