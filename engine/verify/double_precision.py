"""Computes in fp64 what a model says in fp32, so that a comparison shows differences and not rounding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class DoublePrecision(TorchDispatchMode):
    """Keeps fp64 values in fp64 where a model casts them to fp32, as its recurrent rules, norms and softmax do.

    A chunked rule in fp32 gives other roundings for other chunks, of up to 1e-4 relative in a gradient. In fp64 the
    same two computations agree to 1e-12, and a true difference remains what it is.
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
        is_double = bool(args) and isinstance(args[0], Tensor) and args[0].dtype == torch.float64
        if is_double and func is torch.ops.aten._to_copy.default and named.get("dtype") is torch.float32:
            named["dtype"] = torch.float64
        return func(*args, **named)
