"""Sequences of lengths that repeat: a window as the model takes it, filled up behind its last token.

Windows are cut where files and definitions end, so that hardly two have the same length. cuDNN plans its attention for
every length that it meets: over windows as they are, steps ran at two thirds of the speed (docs/benchmarks.md,
Ablation). What is filled up lies behind all tokens, so that none of them attends to it, and predicts nothing: losses
and gradients stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from engine.data.windows import Window
from engine.streaming.loss import IGNORED
from engine.streaming.sequence_run import next_token_labels

_SHARE = 16
"""A length is a multiple of the largest power of two that is no more than this part of it: 6% are filled up at most,
1% on average in windows of whole definitions."""
_COARSEST = 1024
_FILLER = 0


def longest_filled(context: int, device: torch.device) -> int | None:
    """What windows of a context are filled up to at most: on a GPU, where kernels plan for each length."""
    return context if device.type == "cuda" else None


def filled_length(tokens: int, most: int) -> int:
    """The length, of few there are, that a sequence of so many tokens is filled up to; `most` at most."""
    step = min(_COARSEST, 1 << (max(tokens // _SHARE, 1).bit_length() - 1))
    return max(tokens, min(-(-tokens // step) * step, most))


def filled(window: Window, most: int | None) -> Window:
    """The window, its last document longer by what fills it up to one of few lengths; None fills nothing up."""
    missing = 0 if most is None else filled_length(len(window), most) - len(window)
    return Window(np.pad(window.ids, (0, missing), constant_values=_FILLER), window.starts) if missing else window


def labels_of(window: Window, length: int) -> Tensor:
    """What each position of the window, filled up to `length`, has to predict.

    Returns:
        The next token of the same document, IGNORED where there is none. Shape (length,), int64.
    """
    labels = next_token_labels(torch.as_tensor(window.ids), window.starts)
    return functional.pad(labels, (0, length - len(window)), value=IGNORED)


@dataclass(frozen=True, eq=False, kw_only=True)
class ModelInputs:
    """A window as a model takes it that computes it whole. All of shape (tokens,), int64, on its device."""

    ids: Tensor
    labels: Tensor
    "See `labels_of`."
    positions: Tensor | None
    "None where they are those of a single document. Where they begin anew, flash-attn finds documents by them."
    starts: tuple[int, ...]
    "First position of each document."

    def __len__(self) -> int:
        """Tokens."""
        return len(self.ids)


def model_inputs(window: Window, most: int | None, device: torch.device) -> ModelInputs:
    """The window, `filled`, on a device."""
    whole = filled(window, most)
    return ModelInputs(
        ids=torch.as_tensor(whole.ids, device=device),
        labels=labels_of(window, len(whole)).to(device),
        positions=torch.as_tensor(whole.positions(), device=device) if len(whole.starts) > 1 else None,
        starts=whole.starts,
    )
