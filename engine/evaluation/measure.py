"""Measures a base model and the tuned one on held-out files: perplexity, and functions that they complete."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.evaluation.functions import HeldOutFunction, choose_functions
from engine.evaluation.held_out import HeldOut
from engine.evaluation.intervals import FEWEST
from engine.evaluation.result import Evaluation, samples_of, task_result
from engine.evaluation.tally import LossTally, by_language, by_position, overall, tally_losses
from engine.evaluation.tasks import Task, complete, tasks_of

if TYPE_CHECKING:
    from engine.config import EvaluationSection
    from engine.evaluation.completions import Completion
    from engine.generation.run_models import ModelPair, Scored
    from engine.tokenization.encoder import Encoder

Progress = Callable[[int, int, str], None]
"""Called with done, total and the unit; may raise to abort the evaluation."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Identity of an evaluation: run, model, device and data."""

    run: str
    model: str
    device: str
    context: int
    data: str


@dataclass(frozen=True)
class _Measured:
    tally: LossTally
    written: dict[Task, list[Completion]]


def evaluate_pair(
    pair: ModelPair,
    held_out: HeldOut,
    encoder: Encoder,
    settings: EvaluationSection,
    subject: Subject,
    progress: Progress,
) -> Evaluation:
    """Scores both models on the same tokens and the same functions.

    Args:
        pair: The models.
        held_out: Files that training never saw.
        encoder: Their tokenizer.
        settings: Extent of the evaluation.
        subject: Names for the result.
        progress: See `Progress`.
    """
    began = time.monotonic()
    budget = min(settings.function_tokens, subject.context // 2)

    def fits(function: HeldOutFunction) -> bool:
        [ids] = encoder.encode_documents([(function.path, function.body)])
        return len(ids) <= budget

    functions = choose_functions(held_out.texts(encoder), settings.functions, fits)

    def measure(opened: AbstractContextManager[Scored], name: str) -> _Measured:
        with opened as scored:

            def report(done: int, total: int, what: str) -> None:
                progress(done, total, f"{what}, {name}")

            losses_of = scored.step.token_losses
            tally = tally_losses(losses_of, held_out, max_tokens=settings.tokens, progress=report)
            written: dict[Task, list[Completion]] = {}
            if functions:
                with scored.writing() as model:
                    for task in tasks_of(encoder):
                        written[task] = complete(
                            model,
                            encoder,
                            functions,
                            task,
                            context=subject.context,
                            max_tokens=budget,
                            progress=report,
                        )
            else:
                scored.step.close()
        return _Measured(tally, written)

    base = measure(pair.base(), "base model")
    tuned = measure(pair.tuned(), "tuned model")
    row = overall(base.tally, tuned.tally)
    return Evaluation(
        run=subject.run,
        model=subject.model,
        device=subject.device,
        context=subject.context,
        data=subject.data,
        files=row.files,
        tokens=row.tokens,
        seconds=time.monotonic() - began,
        perplexity=row,
        by_language=tuple(by_language(base.tally, tuned.tally, held_out)),
        by_position=tuple(by_position(base.tally, tuned.tally)),
        tasks=tuple(task_result(task, base.written[task], tuned.written[task]) for task in base.written),
        samples=samples_of(functions, base.written["completion"], tuned.written["completion"]) if functions else (),
        notes=tuple(_notes(functions, settings, row.files)),
    )


def _notes(functions: Sequence[HeldOutFunction], settings: EvaluationSection, files: int) -> Sequence[str]:
    notes = []
    if settings.functions and not functions:
        notes.append(
            "no held-out file that parses has a function of a suitable length in a language whose grammar is known"
        )
    elif len(functions) < settings.functions:
        notes.append(f"the held-out files have only {len(functions)} functions of a suitable length")
    if files < FEWEST:
        notes.append(f"{files} files were scored: too few for an interval")
    return notes
