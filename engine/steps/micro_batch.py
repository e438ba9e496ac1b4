"""Searches for the largest microbatch, in windows, that fits in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from engine.steps.whole_step import TrainingStep, count_targets
from engine.streaming.out_of_memory import full_place

if TYPE_CHECKING:
    from engine.data.windows import Window
    from engine.models.spec import ModelSpec

MOST = 256
"""Most windows that are tried in a microbatch."""
CPU_SHARE = 1 / 3
"""Share of the free RAM that a microbatch may take on a CPU, where a trial could trigger the OOM killer."""


def largest_that_fits(fits: Callable[[int], bool], most: int = MOST) -> int:
    """Finds the largest k up to `most` for which the monotone `fits(k)` holds; 0 if not even 1 fits."""
    low, high = 0, 1
    while high <= most and fits(high):
        low, high = high, high * 2
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def fits_on_gpu(step: TrainingStep, window: Window, device: torch.device) -> Callable[[int], bool]:
    """Returns a test that tries one step on k copies of a window, and frees its memory."""

    class Patient:
        def progress(self, *_: object, **__: object) -> None: ...

        def stop_requested(self) -> bool:
            return False

    def fits(count: int) -> bool:
        batch = [window] * count
        try:
            # A scale of zero keeps the gradients' values; None becomes zeros, which the first update clears.
            step.run(batch, 0.0 / count_targets(batch), Patient())
        except (RuntimeError, MemoryError) as error:
            if full_place(error) is None:
                raise
            return False
        finally:
            if device.type == "cuda":
                torch.cuda.empty_cache()
        return True

    return fits


def whole_window_bytes(spec: ModelSpec, context: int, bytes_per_number: int) -> int:
    """Estimates the bytes of activations that backpropagation without recompute keeps for one window.

    Autograd's saved tensors per token and layer are input, norm, residual and attention output (6 of the hidden
    size), queries, keys and values before and after the rotation, and 4 of the feed-forward size (gate, up, their
    product, the activation).
    """
    attention = 2 * spec.head_dim * (spec.heads + 2 * spec.kv_heads)
    per_token = 6 * spec.hidden_size + attention + 4 * spec.mlp_width
    return context * spec.layers * per_token * bytes_per_number


def fits_in_ram(spec: ModelSpec, context: int, bytes_per_number: int, free: int) -> Callable[[int], bool]:
    """Returns a test that compares the estimated activations of k windows with a share of the free RAM."""
    one = whole_window_bytes(spec, context, bytes_per_number)
    return lambda count: count * one <= CPU_SHARE * free
