"""Products of rows that are sorted by group with each group's own matrix: what a layer of experts computes.

A GPU with bf16 takes torch's grouped product, one kernel for all groups. Other devices and dtypes take one product a
group. Both sum within a product in fp32 or wider.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

ALIGNMENT = 8
"""Multiple of which the grouped kernel takes widths: 16 bytes of bf16."""


class Groups:
    """Rows in order of their groups.

    Args:
        ends: One past each group's last row, (groups,), int32, on the rows' device.
    """

    def __init__(self, ends: Tensor) -> None:
        self.ends = ends

    @functools.cached_property
    def slices(self) -> list[tuple[int, slice]]:
        """Number and rows of each group that has any; waits for the device."""
        ends = [0, *self.ends.tolist()]
        return [(i, slice(start, ends[i + 1])) for i, start in enumerate(ends[:-1]) if start < ends[i + 1]]


def grouped_product(x: Tensor, weights: Tensor, groups: Groups) -> Tensor:
    """Multiplies each row by the matrix of its group.

    Args:
        x: (rows, k), in order of the groups.
        weights: (groups, k, m), in x's dtype; may be a transposed view.
        groups: The groups of the rows.

    Returns:
        (rows, m), in x's dtype.
    """
    if _in_one_kernel(x, *weights.shape[1:]):
        return _kernel()(x, weights, groups.ends)
    out = x.new_empty((x.shape[0], weights.shape[2]))
    for number, rows in groups.slices:
        torch.mm(x[rows], weights[number], out=out[rows])
    return out


def grouped_outer(a: Tensor, b: Tensor, groups: Groups) -> Tensor:
    """Computes aᵀ b over the rows of each group, zero for a group without rows.

    Args:
        a: (rows, k), in order of the groups.
        b: (rows, m), in a's dtype.
        groups: The groups of the rows.

    Returns:
        (groups, k, m), in a's dtype.
    """
    if _in_one_kernel(a, a.shape[1], b.shape[1]):
        return _kernel()(a.T, b, groups.ends)
    out = a.new_zeros((groups.ends.shape[0], a.shape[1], b.shape[1]))
    for number, rows in groups.slices:
        torch.mm(a[rows].T, b[rows], out=out[number])
    return out


def _in_one_kernel(x: Tensor, *widths: int) -> bool:
    """Whether torch's grouped kernel takes these operands."""
    if x.is_meta:  # where bytes are counted without numbers, they are a GPU's
        return True
    aligned = all(width % ALIGNMENT == 0 for width in widths)
    return x.is_cuda and x.dtype == torch.bfloat16 and aligned and _has_kernel(x.device)


@functools.cache
def _has_kernel(device: torch.device) -> bool:
    """Whether the kernel runs on a GPU: from Ampere on, as of torch 2.9."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


@functools.cache
def _kernel() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Returns f(x, weights, ends): rows times matrices of groups, or rows of groups times rows."""
    functional = cast("Any", torch.nn.functional)
    product = functional.grouped_mm if hasattr(functional, "grouped_mm") else cast("Any", torch)._grouped_mm

    def grouped(x: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
        if not x.is_meta:
            return cast("Tensor", product(x, weights, offs=ends))
        shape = (ends.shape[0], x.shape[0]) if weights.ndim == 2 else (x.shape[0],)
        return x.new_empty((*shape, weights.shape[-1]))

    return grouped
