"""The parts of a run with `training.objective=dpo`: refusals, the reference, scoring of held-out pairs."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from torch import nn

from engine.data.pairs import Pair, PairWindows
from engine.errors import EliteError
from engine.errors.usage import CONFIG_INVALID
from engine.protocol.events import LogLine
from engine.steps.held_out_loss import HeldOutLoss, choose_windows
from engine.steps.preference_step import PreferenceLoss, PreferenceStep, as_pair, mean_figures
from engine.steps.reference_losses import FILE_NAME, ReferenceLosses

if TYPE_CHECKING:
    from engine.config import RunConfig
    from engine.data.dataset import Dataset
    from engine.data.window_source import Update
    from engine.data.windows import Windows
    from engine.models.fine_tuning import FineTuning
    from engine.recipes.sharing import Sharing
    from engine.runs.context import TrainingSession
    from engine.steps.whole_step import TrainingStep

_REFUSED: dict[str, tuple[object, str, str]] = {
    "data.repositories": ([], "a repository holds no pairs of answers", "leave --repo out"),
    "data.history": (0, "commits are no pairs of answers", "add --set data.history=0"),
    "lora.dropout": (0.0, "the step must compute what was scored before", "add --set lora.dropout=0"),
    "training.neftune_alpha": (
        0.0,
        "the step must compute what was scored before",
        "add --set training.neftune_alpha=0",
    ),
    "training.shifted_attention": (
        False,
        "the step must compute what was scored before",
        "add --set training.shifted_attention=false",
    ),
    "training.label_smoothing": (
        0.0,
        "it smooths the cross-entropy, which is not the loss here",
        "set training.dpo_label_smoothing in its place",
    ),
    "training.curriculum": (False, "a pair is not cut", "add --set training.curriculum=false"),
    "training.stages": ([], "its windows grow, and a pair is not cut", "set training.tier in its place"),
    "training.hours": (None, "its windows grow, and a pair is not cut", "set training.tier in its place"),
}
"""Fields that exclude dpo unless they have this value, why, and the remedy."""


def refuse_combinations(config: RunConfig, ranks: int) -> None:
    """Checks that nothing in a configuration excludes dpo, where that is the objective.

    Args:
        config: The run.
        ranks: Its processes.

    Raises:
        EliteError: CONFIG_INVALID.
    """
    if config.training.objective != "dpo":
        return
    for field, (plain, why, remedy) in _REFUSED.items():
        section, _, name = field.partition(".")
        if getattr(getattr(config, section), name) != plain:
            raise _refusal(field, why, remedy)
    if not config.data.datasets:
        raise _refusal("data.datasets", "it needs rows with chosen and rejected", "name a file of them by --dataset")
    if config.data.overlong not in ("refuse", "drop"):
        raise _refusal("data.overlong", f"{config.data.overlong} would change one side only", "use refuse or drop")
    strategy = config.distributed.strategy
    if strategy not in ("auto", "data"):
        raise _refusal("distributed.strategy", f"{strategy} divides single windows", "use auto, and one GPU")
    if ranks > 1:
        raise _refusal("distributed.gpus", f"it runs in one process, not in {ranks}", "add --set distributed.gpus=1")


def refuse_dropout(model: nn.Module) -> None:
    """Checks that a model has no dropout of its own.

    Raises:
        EliteError: CONFIG_INVALID.
    """
    for name, module in model.named_modules():
        share = module.p if isinstance(module, nn.Dropout) else getattr(module, "attention_dropout", 0.0)
        if isinstance(share, float) and share > 0:
            why = f"the model has a dropout of {share:g} ({name}), and the step must compute what was scored before"
            raise _refusal("model.name", why, "set its dropout to 0 in config.json, or use another model")


def _refusal(field: str, why: str, remedy: str) -> EliteError:
    problem = f"it cannot be combined with training.objective=dpo: {why}"
    return CONFIG_INVALID(source="configuration", field=field, problem=problem, remedy=remedy)


class Preferences:
    """The reference of a run over pairs, and what uses it.

    Args:
        session: Session of the run.
    """

    def __init__(self, session: TrainingSession) -> None:
        self._session = session
        self.reference = ReferenceLosses(session.run.path / FILE_NAME)
        training = session.config.training
        self._loss = PreferenceLoss(
            beta=training.dpo_beta,
            label_smoothing=training.dpo_label_smoothing,
            sft_weight=training.dpo_sft_weight,
        )

    def sharing(self, sharing: Sharing) -> Sharing:
        """Returns the sharing whose steps take pairs."""
        make = functools.partial(PreferenceStep, preference=self._loss, reference=self.reference)
        return dataclasses.replace(sharing, make=make)

    def score_reference(
        self,
        tuning: FineTuning,
        step: TrainingStep,
        dataset: Dataset,
        updates: Iterable[Update],
        report: Callable[[int, int, str], None],
    ) -> None:
        """Scores every pair that the run needs and that is not scored yet, before the weights change.

        Args:
            tuning: The model, as training begins with it or still without what is resumed.
            step: Scores windows.
            dataset: The pairs.
            updates: All of the run.
            report: Called with the progress; may raise to stop. What is scored until then stays.

        Raises:
            OSError: the disk is full or not writable.
        """
        needed = sorted({index for update in updates for index in update.windows})
        held_out = _chosen_pairs(dataset.held_out, self._session.config.training.evaluate_tokens)
        total = len(needed) + len(held_out)

        def pairs() -> Iterator[Pair]:
            yield from (as_pair(dataset.train[index]) for index in needed)
            yield from held_out

        with tuning.untrained():
            added = self.reference.add(pairs(), step, lambda number: report(number, total, "pairs"))
        text = f"reference: {added:,} of {total:,} pairs scored by the base model, the others before"
        self._session.emit(LogLine(level="info", text=text))

    def score_held_out(
        self, step: TrainingStep, pairs: Windows, report: Callable[[int, int, str], None]
    ) -> HeldOutLoss:
        """Scores held-out pairs, the same ones at every call; at most `training.evaluate_tokens` targets or one pair.

        Args:
            step: The run's.
            pairs: At least one.
            report: Called with the progress; may raise to stop.
        """
        assert isinstance(step, PreferenceStep)
        started = time.monotonic()
        chosen = _chosen_pairs(pairs, self._session.config.training.evaluate_tokens)
        scores = []
        for number, pair in enumerate(chosen):
            scores.append(step.score(pair, functools.partial(report, number, len(chosen), "pairs")))
        report(len(chosen), len(chosen), "pairs")
        tokens = sum(pair.chosen.targets for pair in chosen)
        return HeldOutLoss(
            loss=sum(score.chosen for score in scores) / tokens,
            tokens=tokens,
            seconds=time.monotonic() - started,
            preferences=mean_figures(scores),
        )


def _chosen_pairs(pairs: Windows, max_tokens: int) -> list[Pair]:
    assert isinstance(pairs, PairWindows)
    return [pairs[index] for index, _ in choose_windows(pairs, max_tokens)]
