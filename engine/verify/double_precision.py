"""Computes in fp64 what a model says in fp32, so that a comparison shows differences and not rounding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_PRODUCTS = frozenset(
    {
        torch.ops.aten.mm.default,
        torch.ops.aten.bmm.default,
        torch.ops.aten.addmm.default,
        torch.ops.aten.baddbmm.default,
    }
)
"""What takes tensors of a single dtype, where sums and elementwise products promote by themselves."""


class DoublePrecision(TorchDispatchMode):
    """Keeps fp64 values in fp64 where a model casts them to fp32, as its recurrent rules, norms and softmax do.

    A chunked rule in fp32 gives other roundings for other chunks, of up to 1e-4 relative in a gradient. In fp64 the
    same two computations agree to 1e-12, and a true difference remains what it is. A matrix product of such a value
    with an fp32 one is in fp64 too: transformers 5.17 computes rotary angles so, of positions in fp32.
    """

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """See TorchDispatchMode. It holds in the backward pass as well, and in what a checkpoint recomputes there."""
        named = dict(kwargs or {})
        if func is torch.ops.aten._to_copy.default:
            if _is_double(args[0]) and named.get("dtype") is torch.float32:
                named["dtype"] = torch.float64
        elif func in _PRODUCTS and any(map(_is_double, args)):
            args = [x.double() if isinstance(x, Tensor) and x.dtype == torch.float32 else x for x in args]
        return func(*args, **named)


def _is_double(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float64
