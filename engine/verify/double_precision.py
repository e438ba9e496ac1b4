"""Computes in fp64 what a model says in fp32, so that a comparison shows differences and not rounding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class DoublePrecision(TorchFunctionMode):
    """Keeps fp64 values in fp64 where a model casts them to fp32, as its recurrent rules, norms and softmax do.

    A chunked rule in fp32 gives other roundings for other chunks, of up to 1e-4 relative in a gradient. In fp64 the
    same two computations agree to 1e-12, and a true difference remains what it is.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """See TorchFunctionMode."""
        named = dict(kwargs or {})
        if args and isinstance(args[0], Tensor) and args[0].dtype == torch.float64:
            if func is Tensor.float:
                return args[0]
            if named.get("dtype") is torch.float32:
                named["dtype"] = torch.float64
            args = [args[0], *(torch.float64 if value is torch.float32 else value for value in args[1:])]
        return func(*args, **named)
