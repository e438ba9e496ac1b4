"""Fused Triton kernels (RMSNorm, rotary embedding, SwiGLU) from liger-kernel (arXiv 2410.10989)."""

from __future__ import annotations

import importlib.util

import torch
from torch import nn
from transformers import PreTrainedModel

from engine.models.families import refusal


def fuse_kernels(model: PreTrainedModel, device: torch.device) -> bool:
    """Replaces norms, rotary embedding and MLP activation by fused kernels on `device`; returns whether it could.

    The rotary function is replaced for the whole family in this process, so other models of it must be on a GPU too.
    """
    family = model.config.model_type
    if device.type != "cuda" or refusal(family, "fused") or importlib.util.find_spec("liger_kernel") is None:
        return False
    from liger_kernel.transformers import monkey_patch

    decoder: nn.Module = model.get_decoder()
    apply = getattr(monkey_patch, f"apply_liger_kernel_to_{family}")
    apply(cross_entropy=False, fused_linear_cross_entropy=False, rope=True, rms_norm=True, swiglu=True, model=decoder)
    return True
