"""Serves a function by a faster kernel, after a comparison of results and gradients on this GPU.

A compiler can be silently wrong for a GPU, a width or a type that a kernel's authors have not tried. So no kernel takes
a function's place before both have computed a small example of the same widths and types.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Example:
    """A call on which a kernel is compared with a function."""

    tensors: Sequence[Tensor]
    "Inputs whose gradients are compared."
    call: Callable[..., Tensor | Sequence[Tensor]]
    "Calls its first argument, the function or the kernel, with tensors in place of these."

    @staticmethod
    def generator(device: torch.device, seed: int = 0) -> Callable[..., Tensor]:
        """Returns a function that draws normal fp32 numbers of a shape, the same in every process."""
        generator = torch.Generator(device).manual_seed(seed)
        return lambda *shape: torch.randn(shape, generator=generator, device=device)


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Returns the norm of the difference relative to that of `wanted`, tensors of one shape; NaN where either is."""
    wide = torch.promote_types(wanted.dtype, torch.float32)
    error: Tensor = (found.to(wide) - wanted.to(wide)).norm() / wanted.to(wide).norm().clamp_min(1e-30)
    return float(error)


class CheckedKernel:
    """Calls a kernel in place of a function. It may stand in a module or, as a method, in a class.

    Args:
        name: Of what it computes.
        own: The function, which computes an example in fp32.
        kernel: Takes the same arguments.
        key: Returns what a comparison holds for, of a call's arguments; None for a call that the kernel does not serve.
        example: Makes the example to compare, of a call's arguments.
        tolerance: Largest relative error of a result or a gradient.
        unserved: Computes calls that the kernel does not serve; None: `own`.
    """

    checked = True
    verdicts: ClassVar[list[tuple[str, Any, float, bool]]] = []
    "Name, key, largest relative error and outcome of every comparison in this process."

    failures: ClassVar[dict[str, str]] = {}
    "Last error of a kernel that could not compute its example, by name."

    def __init__(
        self,
        name: str,
        own: Callable[..., Any],
        kernel: Callable[..., Any],
        key: Callable[..., Any],
        example: Callable[..., Example],
        tolerance: float,
        *,
        unserved: Callable[..., Any] | None = None,
    ) -> None:
        self._name, self._own, self._kernel = name, own, kernel
        self._key, self._example, self._tolerance = key, example, tolerance
        self.__wrapped__ = own if unserved is None else unserved
        self._right: dict[Any, bool] = {}

    def __get__(self, instance: Any, owner: type) -> Any:
        """Binds to an instance as a function does."""
        return self if instance is None else functools.partial(self, instance)

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Calls the kernel or, where it does not serve or is wrong, the function."""
        key = None if torch.compiler.is_compiling() else self._key(*args, **named)
        if key is None:
            return self.__wrapped__(*args, **named)
        if key not in self._right:
            error = self._largest_error(self._example(*args, **named))
            self._right[key] = error < self._tolerance
            self.verdicts.append((self._name, key, error, self._right[key]))
        return (self._kernel if self._right[key] else self._own)(*args, **named)

    def _largest_error(self, example: Example) -> float:
        """Compares results and gradients; infinite where the kernel fails or gives NaN.

        Raises:
            torch.OutOfMemoryError: no room for the example.
        """
        # A checkpoint around the caller would take the examples' saved tensors for the caller's own.
        unsaved = torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)
        with torch.inference_mode(mode=False), torch.enable_grad(), unsaved:
            wanted = _results(self._own, example, torch.float32)
            try:
                found = _results(self._kernel, example, None)
            except torch.OutOfMemoryError:
                raise
            except Exception as failure:  # a compiler reports what it cannot compile by errors of its own
                self.failures[self._name] = f"{type(failure).__name__}: {failure}"[:300]
                return math.inf
        errors = [relative_error(one, other) for one, other in zip(found, wanted, strict=True)]
        return max(error if math.isfinite(error) else math.inf for error in errors)


def _results(function: Callable[..., Any], example: Example, dtype: torch.dtype | None) -> list[Tensor]:
    """Computes an example's results and the gradients of its tensors, in their types or in one type."""
    leaves = [x.detach().to(dtype or x.dtype).clone().requires_grad_() for x in example.tensors]
    returned = example.call(function, *leaves)
    results = [returned] if isinstance(returned, Tensor) else list(returned)
    # Other numbers than the inputs': a norm's gradient along its own input is nothing but rounding.
    draw = Example.generator(leaves[0].device, seed=1)
    weights = [draw(*result.shape).to(result.dtype) for result in results]
    return [*(result.detach() for result in results), *torch.autograd.grad(results, leaves, weights)]
