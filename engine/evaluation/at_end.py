"""The evaluation at the end of a training run, by the process that trained, with the model that it has in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.data.encoder import Encoder
from engine.evaluation.held_out import HeldOut
from engine.evaluation.keeping import keep_evaluation
from engine.evaluation.measure import Progress, Subject, evaluate_pair
from engine.evaluation.models import AdaptedPair
from engine.training.setup import device_name

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerFast

    from engine.data.dataset import Dataset
    from engine.evaluation.result import Evaluation
    from engine.runtime.session import TrainingSession
    from engine.training.replanning import ReplanningStep
    from engine.training.setup import Setup


def evaluate_at_end(
    session: TrainingSession,
    setup: Setup,
    model: PeftModel,
    step: ReplanningStep,
    tokenizer: PreTrainedTokenizerFast,
    dataset: Dataset,
    progress: Progress,
) -> Evaluation:
    """Measures what `engine evaluate` would, and keeps it in the run's directory.

    Args:
        session: Whose run it is.
        setup: What it decided.
        model: With the adapter that is kept.
        step: Scores windows.
        tokenizer: The model's.
        dataset: Its held-out windows.
        progress: Told how far it is; may raise to abandon it.
    """
    stream = setup.choice.plan.stream
    subject = Subject(
        run=session.run.id,
        model=session.config.model.name,
        device=device_name(setup.placement.device),
        context=setup.context,
        data="files that training held out",
        writes=stream is None or stream.weights != "streamed",
    )
    evaluation = evaluate_pair(
        AdaptedPair(model, step),
        HeldOut.of(dataset),
        Encoder(tokenizer),
        session.config.evaluation,
        subject,
        progress,
    )
    keep_evaluation(session.run, evaluation)
    return evaluation
