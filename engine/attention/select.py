"""Picks the attention backend by name, or the fastest that passes its check on this GPU."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from engine.attention.backend import AttentionBackend
from engine.attention.check import Draw, is_right
from engine.attention.cpu import CpuFlash
from engine.attention.cudnn import CudnnFlash
from engine.attention.flash_attention_4 import FlashAttention4
from engine.attention.flash_attn_package import FlashAttnPackage
from engine.attention.memory_efficient import MemoryEfficient
from engine.attention.softcapped import SoftcappedAttention
from engine.attention.tokens_first import TokensFirst
from engine.attention.torch_flash import TorchFlash
from engine.attention.unequal_heads import for_heads
from engine.errors.planning import StreamPlanError

BACKENDS: tuple[type[AttentionBackend], ...] = (
    CudnnFlash,
    TorchFlash,
    FlashAttention4,
    FlashAttnPackage,
    MemoryEfficient,
    CpuFlash,
)

_PROBE_QUERIES, _PROBE_KEYS = 1024, 8192
_FAST_PROBE = 2048, 16384
"""Queries and keys where a GPU is so fast that launching a smaller block would take longer than computing it."""
_PROBE_BORDERS = (0, 700, 2000, 2900, 5000, 8192)
"""Packed documents that are timed."""


def usable_backends(device: torch.device, dtype: torch.dtype, head_dim: int) -> list[AttentionBackend]:
    """Lists the backends that report support for such tensors here."""
    made = [kind() for kind in BACKENDS]
    return [backend for backend in made if backend.unavailable(device, dtype, head_dim) is None]


@cache
def backend_by_name(
    name: str, device: torch.device, dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int
) -> AttentionBackend:
    """Returns the named backend after it has passed its check.

    Raises:
        StreamPlanError: the name is unknown, the backend does not support such tensors here, or its check failed.
        torch.OutOfMemoryError: see time_backend.
    """
    known = {kind.name: kind for kind in BACKENDS}
    if name not in known:
        raise StreamPlanError(f"unknown attention backend {name}; known: {', '.join(known)}")
    backend = known[name]()
    if (reason := backend.unavailable(device, dtype, head_dim)) is not None:
        raise StreamPlanError(f"attention backend {name} cannot be used: {reason}")
    checked = _checked(backend, device, dtype, heads, kv_heads, head_dim)
    return _with_documents(checked, device, dtype, heads, kv_heads, head_dim)


@cache
def select_backend(
    device: torch.device, dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int
) -> AttentionBackend:
    """Times one forward and backward of a block by each usable backend, and returns the fastest that is correct.

    Raises:
        StreamPlanError: no backend is usable.
        torch.OutOfMemoryError: see time_backend.
    """
    candidates = usable_backends(device, dtype, head_dim)
    if not candidates:
        reasons = "; ".join(f"{kind.name}: {kind().unavailable(device, dtype, head_dim)}" for kind in BACKENDS)
        raise StreamPlanError(f"no attention backend serves {dtype} with head size {head_dim} on {device}: {reasons}")
    if len(candidates) == 1:
        return _checked(candidates[0], device, dtype, heads, kv_heads, head_dim)
    timed = [
        (time_backend(backend, device, dtype, heads, kv_heads, head_dim), i) for i, backend in enumerate(candidates)
    ]
    seconds, best = min(timed)
    if not math.isfinite(seconds):
        raise StreamPlanError(f"every attention backend failed its check on {device} with head size {head_dim}")
    return _with_documents(candidates[best], device, dtype, heads, kv_heads, head_dim)


@cache
def documents_backend(
    device: torch.device, dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int
) -> TokensFirst | None:
    """Returns the fastest correct backend that computes several packed documents in one call; None if there is none.

    Raises:
        torch.OutOfMemoryError: see time_backend.
    """
    usable = [each for each in usable_backends(device, dtype, head_dim) if isinstance(each, TokensFirst)]
    shape = device, dtype, heads, kv_heads, head_dim
    timed = [(time_backend(backend, *shape, borders=_PROBE_BORDERS), i) for i, backend in enumerate(usable)]
    seconds, best = min(timed, default=(math.inf, 0))
    return usable[best] if math.isfinite(seconds) else None


def _with_documents(
    backend: AttentionBackend, device: torch.device, dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int
) -> AttentionBackend:
    """Gives cuDNN, which has no call for documents of several lengths, the fastest one that does."""
    if not isinstance(backend, CudnnFlash):
        return backend
    return CudnnFlash(documents_backend(device, dtype, heads, kv_heads, head_dim))


class HeadShape(Protocol):
    """Heads of a layer."""

    @property
    def heads(self) -> int:
        """Number of query heads."""

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads."""

    @property
    def head_dim(self) -> int:
        """Width of the widest of them."""


class BackendByWidth:
    """The attention backends of a model, whose layers may have heads of several widths (Gemma 4: 256 and 512).

    Args:
        by_width: The backend of each width.
    """

    def __init__(self, by_width: Mapping[int, AttentionBackend]) -> None:
        self._by_width = dict(by_width)

    @classmethod
    def of(
        cls, device: torch.device, dtype: torch.dtype, shapes: Iterable[HeadShape], name: str = "auto"
    ) -> BackendByWidth:
        """Chooses a backend for each width.

        Args:
            device, dtype: Of queries, keys and values.
            shapes: Heads of the layers.
            name: Backend of all of them, or "auto" for the fastest of each.

        Raises:
            StreamPlanError, torch.OutOfMemoryError: see `select_backend` and `backend_by_name`.
        """
        found = {}
        for shape in shapes:
            heads = (device, dtype, shape.heads, shape.kv_heads, shape.head_dim)
            found[shape.head_dim] = select_backend(*heads) if name == "auto" else backend_by_name(name, *heads)
        return cls(found)

    @property
    def widest(self) -> AttentionBackend:
        """The backend of the widest heads, which narrower ones can use too."""
        return self._by_width[max(self._by_width)]

    def serving(self, k: Tensor, v: Tensor, softcap: float | None = None) -> AttentionBackend:
        """Returns what computes with keys and values, each (1, kv_heads, n, width), and capped scores or not."""
        if softcap is not None:
            return SoftcappedAttention(softcap)
        return for_heads(self._by_width.get(k.shape[-1], self.widest), k, v)


def _checked(
    backend: AttentionBackend, device: torch.device, dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int
) -> AttentionBackend:
    """Checks a single backend, which needs no timing."""
    try:
        right = is_right(backend, _draw(device, dtype, head_dim), heads, kv_heads, head_dim**-0.5)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise StreamPlanError(f"attention backend {backend.name} failed its check: {error}") from error
    if not right:
        raise StreamPlanError(f"attention backend {backend.name} computes something else than attention on {device}")
    return backend


def _draw(device: torch.device, dtype: torch.dtype, head_dim: int) -> Draw:
    generator = torch.Generator(device).manual_seed(0)

    def draw(count: int, length: int) -> torch.Tensor:
        drawn = torch.randn((1, length, count, head_dim), generator=generator, device=device, dtype=dtype)
        return drawn.transpose(1, 2)

    return draw


def time_backend(
    backend: AttentionBackend,
    device: torch.device,
    dtype: torch.dtype,
    heads: int,
    kv_heads: int,
    head_dim: int,
    borders: Sequence[int] = (),
) -> float:
    """Times one block's forward and backward, in seconds; infinite if the backend fails or its check does.

    Args:
        backend: See AttentionBackend.
        device, dtype, heads, kv_heads, head_dim: Of the block.
        borders: Those of packed documents to time instead of a block.

    Raises:
        torch.OutOfMemoryError: no room for the block, whose keys, values and their gradients alone take 17 MB with 2
            KV heads of 128, 168 MB with 32 of 80; twice as much on Hopper and newer.
    """
    scale, draw = head_dim**-0.5, _draw(device, dtype, head_dim)

    def once(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grad_out: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if borders:
            out, logsumexp = backend.forward_documents(q, k, v, borders=borders, scale=scale)
            return backend.backward_documents(grad_out, q, k, v, out, logsumexp, borders=borders, scale=scale)
        out, logsumexp = backend.forward(q, k, v, causal=False, scale=scale)
        return backend.backward(grad_out, q, k, v, out, logsumexp, causal=False, scale=scale)

    try:
        if not is_right(backend, draw, heads, kv_heads, scale):
            return math.inf
        queries, keys = (borders[-1], borders[-1]) if borders else _probe(device)
        large = draw(heads, queries), draw(kv_heads, keys), draw(kv_heads, keys), draw(heads, queries)
        once(*large)
        times = []
        for _ in range(3):
            _synchronize(device)
            began = time.perf_counter()
            once(*large)
            _synchronize(device)
            times.append(time.perf_counter() - began)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # a package's kernel refuses shapes, GPUs and versions by errors of any kind, assertions too
        return math.inf
    return min(times)


def _probe(device: torch.device) -> tuple[int, int]:
    fast = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
    return _FAST_PROBE if fast else (_PROBE_QUERIES, _PROBE_KEYS)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
