"""FlashAttention-4 of the package flash-attn-4, where it is installed: for Hopper and newer, compiled at first use.

Its forward and backward take the output and the logsumexp of whole rows, as this project's blocks need; the public
function returns no logsumexp for gradients, so the private ones are called.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from engine.attention.backend import needs_ampere
from engine.attention.tokens_first import Extent, TokensFirst


class FlashAttention4(TokensFirst):
    """Wraps `flash_attn.cute.interface` of 4.0.0b36, which supports grouped heads."""

    name = "flash-attn-4"

    def unavailable(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        """See AttentionBackend. Needs the package, Hopper or newer, 16-bit, heads as wide as TorchFlash's."""
        reason = needs_ampere(device, dtype, head_dim, largest_head=256)
        if reason is None and torch.cuda.get_device_capability(device) < (9, 0):
            reason = "its backward needs compute capability 9.0 (Hopper) or newer"
        return _interface_or_reason()[1] if reason is None else reason

    def attend(self, q: Tensor, k: Tensor, v: Tensor, extent: Extent) -> tuple[Tensor, Tensor]:
        """See TokensFirst."""
        out, logsumexp, *_ = _interface()._flash_attn_fwd(q, k, v, return_lse=True, **_options(extent))
        return out, logsumexp

    def attend_backward(
        self, grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor, extent: Extent
    ) -> Sequence[Tensor]:
        """See TokensFirst."""
        gradients: Sequence[Tensor] = _interface()._flash_attn_bwd(
            q, k, v, out, grad_out, logsumexp, **_options(extent)
        )[:3]
        return gradients


def _options(extent: Extent) -> dict[str, Any]:
    """Returns the keyword arguments of the package's functions."""
    options: dict[str, Any] = {"softmax_scale": extent.scale, "causal": extent.causal}
    if extent.ends is not None:
        options |= {
            "cu_seqlens_q": extent.ends,
            "cu_seqlens_k": extent.ends,
            "max_seqlen_q": extent.queries,
            "max_seqlen_k": extent.keys,
        }
    return options


def _interface() -> ModuleType:
    module, reason = _interface_or_reason()
    if module is None:
        raise RuntimeError(reason)
    return module


@cache
def _interface_or_reason() -> tuple[ModuleType | None, str | None]:
    """Imports the package's functions; None and the reason if they cannot be imported."""
    _keep_compiled_kernels()
    try:
        return importlib.import_module("flash_attn.cute.interface"), None
    except ModuleNotFoundError as error:
        return None, f"the flash-attn-4 package is not installed (no module {error.name})"
    except Exception as error:  # made for another torch or CUDA: its compiler fails in ways of its own
        return None, f"the flash-attn-4 package does not load: {' '.join(str(error).split())}"


def _keep_compiled_kernels() -> None:
    """Has the package keep its kernels on disk, else each process would compile them for ten seconds.

    Its own default is a folder under /tmp, which somebody else could have made.
    """
    import platformdirs

    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "1")
    folder = platformdirs.user_cache_path("elite-tui") / "attention-kernels"
    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_DIR", str(folder))
