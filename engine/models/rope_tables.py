"""Keeps rotary tables in full fp32, even where TF32 is allowed, and those of each packed document its own.

transformers before 5.22 computes the angles by a matrix product (inverse frequencies @ positions). With TF32, which
`tune_memory` allows, the factors of a product are rounded to 10 bits, and positions above 2,048 coincide (transformers
issue 48428). The product runs over one element, so in full fp32 it equals the elementwise product of newer versions.

LongRoPE (arXiv 2402.13753) has other factors for inputs beyond the length of pretraining. transformers tells the length
from the largest position, so that a short document would take the factors of a long one that it is packed with.
"""

from __future__ import annotations

import contextlib
import functools
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from engine.models.rope import ROPE_KEYS, rope_changes

_MARK = "_elite_full_precision"


def keep_tables_exact(model: nn.Module) -> None:
    """Makes every rotary embedding of a model compute in fp32, without TF32 and autocast. Idempotent.

    Args:
        model: A transformers model, with or without an adapter; the forward of its rotary modules is replaced in place.
    """
    for module in model.modules():
        if _is_rotary(module) and _MARK not in module.__dict__:
            module.__dict__[_MARK] = True
            module.forward = _in_full_precision(module.forward)


def _is_rotary(module: nn.Module) -> bool:
    return type(module).__name__.endswith("RotaryEmbedding")


@contextlib.contextmanager
def tables_by_document(
    decoder: Any, starts: Sequence[int], tokens: int, length: int, device: torch.device
) -> Iterator[None]:
    """Makes the rotary tables of packed documents, within the block, those of each document alone.

    Args:
        decoder: transformers' decoder, whose inputs are one sequence.
        starts: First position of each document, ascending from 0.
        tokens: Length of the documents together.
        length: Length of the inputs, with padding behind the last document.
        device: Of the inputs.
    """
    changes = sorted(rope_changes({name: getattr(decoder.config, name, None) for name in ROPE_KEYS}))
    lengths = [end - start for start, end in pairwise((*starts, tokens))]
    kinds = [bisect_left(changes, alone) for alone in lengths]
    if set(kinds) == {bisect_left(changes, max([*lengths, length - starts[-1]]))}:
        yield
        return
    of_token = torch.full((length,), -1)
    of_token[:tokens] = torch.tensor(kinds).repeat_interleave(torch.tensor(lengths))
    masks = [(of_token == kind).to(device) for kind in sorted(set(kinds))]
    rotary = [module for module in decoder.modules() if _is_rotary(module)]
    before = [module.__dict__.get("forward") for module in rotary]
    for module in rotary:
        module.forward = _by_document(module.forward, masks)
    try:
        yield
    finally:
        for module, forward in zip(rotary, before, strict=True):
            if forward is None:
                del module.__dict__["forward"]
            else:
                module.forward = forward


def _by_document(forward: Callable[..., Any], masks: Sequence[torch.Tensor]) -> Callable[..., Any]:
    """Computes the tables once for each mask, (tokens,), with the positions of other tokens out of the way."""

    @functools.wraps(forward)
    def computed(x: torch.Tensor, position_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        found: list[torch.Tensor] = []
        for mask in masks:
            tables = forward(x, position_ids * mask, *args, **kwargs)
            of_kind = (tables,) if isinstance(tables, torch.Tensor) else tables
            rows = mask[:, None]
            found = [torch.where(rows, *both) for both in zip(of_kind, found or of_kind, strict=True)]
        return found[0] if isinstance(tables, torch.Tensor) else tuple(found)

    return computed


def _in_full_precision(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def computed(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            # The meta device, on which memory is counted, has no autocast.
            kind = x.device.type if torch.amp.is_autocast_available(x.device.type) else "cpu"
            with torch.autocast(kind, enabled=False):
                return forward(x, *args, **kwargs)
        finally:
            torch.set_float32_matmul_precision(before)

    return computed
