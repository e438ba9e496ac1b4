"""Evaluates the result at the end of a training run, in the training process, with its model in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.evaluation.asking import Asking
from engine.evaluation.held_out import HeldOut, training_texts
from engine.evaluation.measure import Progress, Subject, evaluate_pair
from engine.evaluation.result_files import keep_evaluation
from engine.generation.run_models import AdaptedPair
from engine.models.fine_tuning import AdapterTuning
from engine.models.placement import device_name
from engine.protocol.events import LogLine
from engine.steps.oom_fallback import FallbackStep
from engine.tokenization.encoder import Encoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from engine.data.dataset import Dataset
    from engine.evaluation.baselines import Baselines
    from engine.evaluation.result import Evaluation
    from engine.models.fine_tuning import FineTuning
    from engine.recipes.setup import Setup
    from engine.runs.context import TrainingSession
    from engine.steps.whole_step import TrainingStep


def final_eval(
    session: TrainingSession,
    setup: Setup,
    tuning: FineTuning,
    step: TrainingStep,
    tokenizer: PreTrainedTokenizerFast,
    dataset: Dataset,
    progress: Progress,
    baselines: Baselines | None = None,
) -> Evaluation | None:
    """Runs the evaluation of `engine evaluate` and saves it in the run's directory; None if it cannot run here.

    With an adapter the base model is still in memory. After full fine-tuning, or with weights sharded over processes,
    both models would have to be loaded, which `engine evaluate` does.

    Args:
        session: Session of the run.
        setup: Decisions of the run.
        tuning: Trained weights.
        step: Step that scores windows.
        tokenizer: The model's tokenizer.
        dataset: Data set with the held-out windows.
        progress: Called with the progress; may raise to abandon the evaluation.
        baselines: Keeps the base model's scores.
    """
    if not (isinstance(tuning, AdapterTuning) and isinstance(step, FallbackStep) and session.group.size == 1):
        text = f"not evaluated at the end: `engine evaluate {session.run.id}` loads base and result for it"
        session.emit(LogLine(level="info", text=text))
        return None
    subject = Subject(
        run=session.run.id,
        model=session.config.model.name,
        device=device_name(setup.placement.device),
        context=setup.context,
        data="files that training held out",
    )
    encoder = Encoder(tokenizer)

    def notify(text: str) -> None:
        session.emit(LogLine(level="info", text=text))

    evaluation = evaluate_pair(
        AdaptedPair(tuning.model, step, setup.placement.device),
        HeldOut.of(dataset),
        encoder,
        session.config.evaluation,
        subject,
        progress,
        baselines=baselines,
        trained=list(training_texts(dataset, encoder)),
        asking=Asking.of(tokenizer, encoder, session.config.data.chat_template, notify),
    )
    keep_evaluation(session.run, evaluation)
    return evaluation
