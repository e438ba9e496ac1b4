"""Fused Triton kernels (RMSNorm, rotary embedding, SwiGLU) from liger-kernel (arXiv 2410.10989), where they apply."""

from __future__ import annotations

import importlib.util

import torch
from torch import nn
from transformers import PreTrainedModel

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Families whose fused gradient is tested on a GPU against the unfused one."""


def fuse_kernels(model: PreTrainedModel) -> bool:
    """Replaces the layers' norms, rotary embedding and MLP activation by fused kernels; tells whether it could.

    The rotary function is replaced for the whole family in this process: other models of it must be on a GPU too.
    """
    family = model.config.model_type
    if not torch.cuda.is_available() or family not in FAMILIES or importlib.util.find_spec("liger_kernel") is None:
        return False
    from liger_kernel.transformers import monkey_patch

    decoder: nn.Module = model.get_decoder()
    apply = getattr(monkey_patch, f"apply_liger_kernel_to_{family}")
    apply(cross_entropy=False, fused_linear_cross_entropy=False, rope=True, rms_norm=True, swiglu=True, model=decoder)
    return True
