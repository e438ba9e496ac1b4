"""Fused Triton kernels (RMSNorm, rotary embedding, SwiGLU) from liger-kernel (arXiv 2410.10989).

Families whose gradient was compared on a GPU take all of them. In any other family the RMSNorms are served, each
compared with the family's own code before its first use.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from engine.models.checked_kernel import CheckedKernel, Example
from engine.models.families import refusal

_TOLERANCE = 2e-2
"Relative error that 16-bit arithmetic explains."
_ROWS = 96


def fuse_kernels(model: PreTrainedModel, device: torch.device) -> bool:
    """Replaces norms, rotary embedding and MLP activation by fused kernels on `device`; returns whether all of them.

    The rotary function is replaced for the whole family in this process, so other models of it must be on a GPU too.
    """
    family = model.config.model_type
    if device.type != "cuda" or importlib.util.find_spec("liger_kernel") is None:
        return False
    if refusal(family, "fused"):
        serve_norms(model)
        return False
    from liger_kernel.transformers import monkey_patch

    decoder: nn.Module = model.get_decoder()
    apply = getattr(monkey_patch, f"apply_liger_kernel_to_{family}")
    apply(cross_entropy=False, fused_linear_cross_entropy=False, rope=True, rms_norm=True, swiglu=True, model=decoder)
    return True


def serve_norms(model: nn.Module) -> None:
    """Lets a fused kernel compute the RMSNorms of a model's classes on a GPU, for the rest of the process."""
    for module in model.modules():
        own = type(module).forward
        if not isinstance(own, CheckedKernel) and is_rms_norm(module):
            type(module).forward = _checked_norm(own, _offset(module))


def is_rms_norm(module: nn.Module) -> bool:
    """Whether a module is called an RMSNorm, has one vector of weights, and takes one input."""
    named = type(module).__name__.endswith("RMSNorm") and not list(module.children())
    weights = dict(module.named_parameters())
    scaled = list(weights) == ["weight"] and weights["weight"].ndim == 1
    lone = len(inspect.signature(type(module).forward).parameters) == 2
    return named and scaled and lone and _epsilon(module) is not None


def _epsilon(module: Any) -> float | None:
    found: float | None = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    return found


def _offset(module: nn.Module) -> float:
    """Returns what the family adds to the weights: 1 where weights of 0 change nothing, else 0."""
    width = module.get_parameter("weight").shape
    weights = {"weight": torch.zeros(width)}
    with torch.no_grad():
        found: Tensor = torch.func.functional_call(module, weights, (torch.ones((1, *width)),))
    return 1.0 if bool(found.any()) else 0.0


def _checked_norm(own: Callable[..., Any], offset: float) -> CheckedKernel:
    mode = "gemma" if offset else "llama"  # where the kernel rounds: after or before it multiplies by the weights

    def kernel(module: Any, x: Tensor) -> Tensor:
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction

        # Not in place: what the norm's output is the gradient of may be read again.
        y: Tensor = LigerRMSNormFunction.apply(x, module.weight, _epsilon(module), offset, mode, False)
        return y

    def key(module: Any, x: Tensor) -> Any:
        weight = getattr(module, "weight", None)  # of one class, some norms have weights and some have none (Gemma 4)
        if weight is None or not x.is_cuda:
            return None
        return (x.device, x.dtype, weight.dtype, x.shape[-1], type(module))

    def example(module: nn.Module, x: Tensor) -> Example:
        drawn = Example.generator(x.device)(1, _ROWS, x.shape[-1]).to(x.dtype)
        return Example(tensors=(drawn,), call=lambda norm, x: norm(module, x))

    return CheckedKernel("norm", own, kernel, key, example, _TOLERANCE)
