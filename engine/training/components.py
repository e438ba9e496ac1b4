"""TrainerComponents, the parts that the training loop drives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engine.optim.decay import with_vectors_apart
from engine.training.eta import Eta

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.optim import Optimizer

    from engine.data.window_source import Update, WindowSource
    from engine.models.fine_tuning import FineTuning
    from engine.optim.build import Stateful
    from engine.optim.gradients import GradientPipeline
    from engine.optim.schedule import Schedule
    from engine.steps.whole_step import TrainingStep, Window
    from engine.steps.zero_step import ZeroStep
    from engine.training.checkpoints import CheckpointFolder


@dataclass(frozen=True, kw_only=True)
class TrainerComponents:
    """Components of the training loop, all ready for the next update."""

    tuning: FineTuning
    "Trained weights and their model."
    step: TrainingStep
    optimizer: Optimizer | ZeroStep
    guarded: bool = False
    "Whether an update may be launched before its loss is known (engine.optim.guarded)."
    schedule: Schedule
    gradients: GradientPipeline
    "Transforms of the gradient before the optimiser uses it."
    accelerator: Accelerator
    windows: WindowSource
    context: int
    "Tokens in the longest window."
    checkpoints: CheckpointFolder
    seed: int = 0
    "Key of an update's random numbers, together with its position (`training.seed`)."
    evaluate: Callable[[], float | None]
    "Scores the held-out files, emits EvalCompleted, and returns the loss per token; None if a stop interrupted it."
    stateful: Mapping[str, Stateful] = field(default_factory=dict)
    "Other stateful components; every entry is in every checkpoint, under its name."
    sequences: Callable[[Sequence[Window], int], Sequence[Window]] = lambda windows, _: windows
    "Maps an update's windows and the steps before it to its sequences; a curriculum cuts the windows."
    updates: Sequence[Update] | None = None
    "All updates of a run whose windows grow; None: `windows` in their order."
    enter: Callable[[Update], None] = lambda _: None
    "Called before each update; prepares the step for its stage."
    eta: Callable[[Sequence[Update]], Eta] = lambda updates: Eta(updates=updates)
    "Makes the estimate of the remaining time."
    early_end: Callable[[], str | None] = lambda: None
    "Returns why the run should end before its last step; None while it should continue."

    @property
    def model(self) -> Any:
        """The module that computes."""
        return self.tuning.model

    def load_optimizer(self, state: Mapping[str, Any]) -> None:
        """Loads the optimizer state from a checkpoint of this version or an earlier one."""
        groups = getattr(self.optimizer, "positions", None)
        if groups is None:
            position = {id(parameter): i for i, parameter in enumerate(self.tuning.weights.values())}
            groups = [[position[id(p)] for p in group["params"]] for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(dict(with_vectors_apart(state, groups)))
