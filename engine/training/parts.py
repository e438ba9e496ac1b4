"""What the loop works with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from accelerate import Accelerator
    from peft import PeftModel
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR

    from engine.training.checkpoints import CheckpointFolder
    from engine.training.step import TrainingStep
    from engine.training.updates import WindowSource


class Stateful(Protocol):
    """Keeps something from update to update. The state is tensors and JSON values, nested as it likes."""

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes; tensors may be the ones in use."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Goes on from a state; its tensors are this call's to keep."""


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
    evaluate: Callable[[], float | None]
    "Scores the held-out files, emits EvalCompleted, and gives the loss a token; None if a stop came in between."
    stateful: Mapping[str, Stateful] = field(default_factory=dict)
    "What else keeps state; every entry is in every checkpoint, under its name."
