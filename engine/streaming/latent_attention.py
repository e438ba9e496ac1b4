"""Latent attention (MLA, arXiv 2405.04434): a tile stores compressed keys and values, and expands them to read them.

transformers' layers compress a token to two latents, one for all heads' keys and values and one for the rotated part of
the keys, and expand both by a method of their own, `expand_kv`. The KV cache stores the latents in place of keys and
values: 576 numbers a token in DeepSeek-V2, where keys and values are 5,120 for 16 heads. Every block of earlier tokens
is expanded when a tile attends to it. In the backward pass the block's expansion has a graph, which takes the gradients
of its keys and values to the latents and to the expansion's weights.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from engine.errors.model import MODEL_FAMILY_UNSUPPORTED
from engine.streaming.kv_cache import KvCache

Expand = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Expands latents, each (1, 1, n, width), to keys and values, (1, heads, n, width)."""

_METHOD = "expand_kv"


def latent_attention(layer: nn.Module) -> nn.Module | None:
    """Finds the attention of a decoder layer that expands latents; None where there is none, or more than one."""
    found = [part for part in layer.modules() if _expands(part)]
    return found[0] if len(found) == 1 else None


def _expands(module: nn.Module) -> bool:
    method = getattr(type(module), _METHOD, None)
    return method is not None and len(inspect.signature(method).parameters) == 3


@contextlib.contextmanager
def routed_expansion(module: nn.Module | None, through: Callable[[Expand, Tensor, Tensor], Any]) -> Iterator[None]:
    """Within it, the module expands latents by `through(its own method, *latents)`; shapes as in Expand."""
    if module is None:
        yield
        return
    own: Expand = getattr(module, _METHOD)
    module.__dict__[_METHOD] = lambda *latents: through(own, *latents)
    try:
        yield
    finally:
        del module.__dict__[_METHOD]


def refuse_dropout(module: nn.Module | None, config: Any) -> None:
    """Refuses dropout in an expansion, which would draw other numbers each time that a block is expanded.

    Raises:
        EliteError: MODEL_FAMILY_UNSUPPORTED.
    """
    if module is None or not module.training:
        return
    if any(isinstance(part, nn.Dropout) and part.p > 0 for part in module.modules()):
        raise MODEL_FAMILY_UNSUPPORTED(
            family=config.model_type,
            feature="lora.dropout in the streamed step",
            problem="its keys and values are expanded again for every tile that reads them",
            supported="lora.dropout 0, or training.step whole",
        )


class LatentSource:
    """A KeyValueSource (engine.attention.blockwise) over a cache of latents, one block expanded at a time.

    Args:
        cache: Stores the two latents in the place of keys and values.
        expand: The layer's own expansion.
        graph: Whether gradients are added, which the expansion needs a graph for.
    """

    def __init__(self, cache: KvCache, expand: Expand, *, graph: bool) -> None:
        self._cache, self._expand, self._graph = cache, expand, graph
        self._leaves: tuple[Tensor, ...] = ()
        self._expanded: tuple[Tensor, Tensor] | None = None
        self._span = (0, 0)

    def expect(self, ranges: Sequence[tuple[int, int]]) -> None:
        """See KeyValueSource."""
        self._cache.expect(ranges)

    def kv_cache(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """See KeyValueSource."""
        latents = self._cache.kv_cache(start, stop)
        if not self._graph:
            with torch.no_grad():
                return self._expand(*latents)
        with torch.enable_grad():
            self._leaves = tuple(x.detach().requires_grad_() for x in latents)
            self._expanded = self._expand(*self._leaves)
        self._span = (start, stop)
        k, v = (x.detach() for x in self._expanded)
        return k, v

    def add_gradients(self, start: int, stop: int, dk: Tensor, dv: Tensor) -> None:
        """See KeyValueSource; the range must be the last one that was read.

        Raises:
            RuntimeError: it is another range.
        """
        if self._expanded is None or self._span != (start, stop):
            raise RuntimeError(f"gradients of keys {start} to {stop}, which are not the last that were expanded")
        expanded, leaves = self._expanded, self._leaves
        self._expanded, self._leaves = None, ()
        torch.autograd.backward(
            expanded, [gradient.to(x.dtype) for gradient, x in zip((dk, dv), expanded, strict=True)]
        )
        found = [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]
        self._cache.add_gradients(start, stop, *found)


class _WithLaterGradients(Function):
    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor, cache: KvCache, start: int) -> tuple[Tensor, Tensor]:
        ctx.cache, ctx.start = cache, start
        return first.view_as(first), second.view_as(second)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        later = ctx.cache.gradients(ctx.start, ctx.start + gradients[0].shape[2])
        first, second = ((own + added).to(own.dtype) for own, added in zip(gradients, later, strict=True))
        return first, second, None, None


def with_later_gradients(first: Tensor, second: Tensor, cache: KvCache, start: int) -> tuple[Tensor, Tensor]:
    """Returns a tile's latents unchanged; their gradients will include those that later tiles added to the cache.

    Args:
        first, second: Latents of the tile, (1, 1, tile, width).
        cache: Sums the gradients.
        start: Position of the tile.
    """
    found: tuple[Tensor, Tensor] = _WithLaterGradients.apply(first, second, cache, start)  # type: ignore[no-untyped-call]
    return found
