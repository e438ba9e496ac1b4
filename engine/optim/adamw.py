"""AdamW (arXiv 1711.05101) over the adapter's fp32 master weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch.nn import Parameter
from torch.optim import AdamW

if TYPE_CHECKING:
    from engine.config import TrainingSection


def adamw(parameters: Iterable[Parameter], training: TrainingSection) -> AdamW:
    """The optimiser. The decay acts on A and B alike: it pulls the update B·A towards zero, not the base weights."""
    return AdamW(parameters, lr=training.learning_rate, weight_decay=training.weight_decay)
