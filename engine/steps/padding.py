"""Pads windows to one of few lengths.

Windows are cut where files and definitions end, so that hardly two have the same length. cuDNN makes an attention plan
for every length. On unpadded windows, steps ran at two thirds of the speed (docs/benchmarks.md, Ablation). The padding
lies behind all tokens, so that none of them attends to it, and it predicts nothing. Losses and gradients are unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from engine.data.windows import Window
from engine.streaming.loss import IGNORED, labelled_positions
from engine.streaming.sequence_run import next_token_labels

_SHARE = 16
"""A padded length is a multiple of the largest power of two that is at most 1 / _SHARE of the window. Padding is 6% at
most, 1% on average in windows of whole definitions."""
_COARSEST = 1024
_FILLER = 0


def longest_filled(context: int, device: torch.device) -> int | None:
    """Returns the longest padded length on a GPU, whose kernels plan for each length; None on a CPU."""
    return context if device.type == "cuda" else None


def filled_length(tokens: int, most: int) -> int:
    """Returns the padded length, one of few, of a sequence of `tokens` tokens; at most `most`."""
    step = min(_COARSEST, 1 << (max(tokens // _SHARE, 1).bit_length() - 1))
    return max(tokens, min(-(-tokens // step) * step, most))


def filled(window: Window, most: int | None) -> Window:
    """Pads the window's last document to one of few lengths, at most `most`; None pads nothing."""
    missing = 0 if most is None else filled_length(len(window), most) - len(window)
    if not missing:
        return window
    learnt = None if window.learnt is None else np.pad(window.learnt, (0, missing))
    weights = None if window.weights is None else np.pad(window.weights, (0, missing))
    return Window(np.pad(window.ids, (0, missing), constant_values=_FILLER), window.starts, learnt, weights)


def labels_of(window: Window, length: int) -> Tensor:
    """Makes the labels of the window, padded to `length`.

    Returns:
        The next token of the same document, IGNORED where there is none that is learnt. Shape (length,), int64.
    """
    labels = next_token_labels(torch.as_tensor(window.ids), window.starts)
    if window.learnt is not None:
        labels[:-1][~torch.as_tensor(window.learnt[1:])] = IGNORED
    return functional.pad(labels, (0, length - len(window)), value=IGNORED)


def coefficients_of(window: Window, length: int) -> Tensor | None:
    """Makes the factors of the losses at the positions of `labels_of`; None where all are 1.

    Returns:
        The weight of the next token, 0 behind the last one. Shape (length,), fp64.
    """
    if window.weights is None:
        return None
    return functional.pad(torch.as_tensor(window.weights[1:]), (0, length - len(window) + 1))


@dataclass(frozen=True, eq=False, kw_only=True)
class ModelInputs:
    """Inputs of a model for a whole window, on its device. Tensors are of shape (tokens,), and int64 but for floats."""

    ids: Tensor
    labels: Tensor
    "See `labels_of`."
    labelled: Tensor | None
    "See `labelled_positions`, at most half of all; None for all."
    coefficients: Tensor | None
    "See `coefficients_of`; fp32 or wider."
    positions: Tensor | None
    "Positions in documents, None for a single document. flash-attn finds documents where they restart from 0."
    starts: tuple[int, ...]
    "First position of each document."

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.ids)


def model_inputs(window: Window, most: int | None, device: torch.device) -> ModelInputs:
    """Makes the inputs of a `filled` window on a device."""
    whole = filled(window, most)
    labels, factors = labels_of(window, len(whole)), coefficients_of(window, len(whole))
    labelled = labelled_positions(labels)
    if labelled is not None and 2 * len(labelled) > len(whole):
        labelled = (
            None  # what is gathered stays until the backward pass, and costs more memory than the head's chunks save
        )
    return ModelInputs(
        ids=torch.as_tensor(whole.ids, device=device),
        labels=labels.to(device),
        labelled=None if labelled is None else labelled.to(device),
        coefficients=None if factors is None else factors.to(device),
        positions=torch.as_tensor(whole.positions(), device=device) if len(whole.starts) > 1 else None,
        starts=whole.starts,
    )
