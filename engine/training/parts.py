"""What the loop works with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import Accelerator
    from peft import PeftModel
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR

    from engine.training.checkpoints import CheckpointFolder
    from engine.training.step import TrainingStep
    from engine.training.updates import WindowSource


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the loop works with, all of it ready for the next update."""

    model: PeftModel
    step: TrainingStep
    optimizer: Optimizer
    schedule: LambdaLR
    accelerator: Accelerator
    windows: WindowSource
    context: int
    "Tokens in the longest window."
    checkpoints: CheckpointFolder
    evaluate: Callable[[], str]
    "Scores the held-out files, emits EvalCompleted, and says the perplexity."
