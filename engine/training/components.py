"""What the loop works with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engine.optim.decay import with_vectors_apart

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.optim import Optimizer

    from engine.data.window_source import WindowSource
    from engine.models.fine_tuning import FineTuning
    from engine.optim.build import Stateful
    from engine.optim.gradients import GradientPipeline
    from engine.optim.schedule import Schedule
    from engine.steps.whole_step import TrainingStep, Window
    from engine.steps.zero_step import ZeroStep
    from engine.training.checkpoints import CheckpointFolder


@dataclass(frozen=True, kw_only=True)
class TrainerComponents:
    """What the loop works with, all of it ready for the next update."""

    tuning: FineTuning
    "What is trained."
    step: TrainingStep
    optimizer: Optimizer | ZeroStep
    schedule: Schedule
    gradients: GradientPipeline
    "What happens to the gradient before the optimiser sees it."
    accelerator: Accelerator
    windows: WindowSource
    context: int
    "Tokens in the longest window."
    checkpoints: CheckpointFolder
    seed: int = 0
    "With an update's position, what its random numbers follow from (`training.seed`)."
    evaluate: Callable[[], float | None]
    "Scores the held-out files, emits EvalCompleted, and gives the loss a token; None if a stop came in between."
    stateful: Mapping[str, Stateful] = field(default_factory=dict)
    "What else keeps state; every entry is in every checkpoint, under its name."
    sequences: Callable[[Sequence[Window], int], Sequence[Window]] = lambda windows, _: windows
    "What the update after so many steps trains on, of its windows: a curriculum cuts them."
    early_end: Callable[[], str | None] = lambda: None
    "Why the run should end now, before its last step; None while it should go on."

    @property
    def model(self) -> Any:
        """What computes."""
        return self.tuning.model

    def load_optimizer(self, state: Mapping[str, Any]) -> None:
        """Puts the optimiser where its saved state has it, of this version or an earlier one."""
        groups = getattr(self.optimizer, "positions", None)
        if groups is None:
            position = {id(parameter): i for i, parameter in enumerate(self.tuning.weights.values())}
            groups = [[position[id(p)] for p in group["params"]] for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(dict(with_vectors_apart(state, groups)))
