"""FlashAttention-2 of the flash-attn package (arXiv 2307.08691), where it is installed.

torch has the same algorithm, but the package is ahead of it by a release or two. engine.attention.select measures which
is faster on a GPU. This module calls the package's private functions, because the public one does not return the
logsumexp, and its backward does not accept rows that were merged from several blocks.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from engine.attention.backend import needs_ampere
from engine.attention.tokens_first import Extent, TokensFirst


class FlashAttnPackage(TokensFirst):
    """Wraps `flash_attn.flash_attn_interface` of 2.8, which supports grouped heads."""

    name = "flash-attn"

    def unavailable(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        """See AttentionBackend. Needs the package, and the same hardware, dtype and head size as TorchFlash."""
        reason = needs_ampere(device, dtype, head_dim, largest_head=256)
        return _interface_or_reason()[1] if reason is None else reason

    def attend(self, q: Tensor, k: Tensor, v: Tensor, extent: Extent) -> tuple[Tensor, Tensor]:
        """See TokensFirst."""
        package, options = _interface(), _options(extent)
        call = package._flash_attn_forward if extent.ends is None else package._flash_attn_varlen_forward
        out, logsumexp, *_ = call(q, k, v, *_lengths(extent), return_softmax=False, **options)
        return out, logsumexp

    def attend_backward(
        self, grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor, extent: Extent
    ) -> Sequence[Tensor]:
        """See TokensFirst."""
        package, options = _interface(), _options(extent)
        call = package._flash_attn_backward if extent.ends is None else package._flash_attn_varlen_backward
        gradients = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v)]
        call(grad_out, q, k, v, out, logsumexp, *gradients, *_lengths(extent), deterministic=False, **options)
        return gradients


def _lengths(extent: Extent) -> tuple[Any, ...]:
    return () if extent.ends is None else (extent.ends, extent.ends, extent.queries, extent.keys)


def _options(extent: Extent) -> dict[str, Any]:
    """Returns the keyword arguments of the package's functions, without dropout, window, softcap or slopes."""
    return {
        "dropout_p": 0.0,
        "softmax_scale": extent.scale,
        "causal": extent.causal,
        "window_size_left": -1,
        "window_size_right": -1,
        "softcap": 0.0,
        "alibi_slopes": None,
    }


def _interface() -> ModuleType:
    module, reason = _interface_or_reason()
    if module is None:
        raise RuntimeError(reason)
    return module


@cache
def _interface_or_reason() -> tuple[ModuleType | None, str | None]:
    """Imports the package's functions; None and the reason if they cannot be imported."""
    try:
        return importlib.import_module("flash_attn.flash_attn_interface"), None
    except ModuleNotFoundError:
        return None, "the flash-attn package is not installed"
    except (ImportError, OSError, RuntimeError) as error:  # compiled against another torch
        return None, f"the flash-attn package does not load: {' '.join(str(error).split())}"
