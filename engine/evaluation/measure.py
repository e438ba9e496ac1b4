"""Measures a base model and the tuned one on held-out files: perplexity, and functions that they complete."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.evaluation.baselines import Baselines, digest, digest_windows
from engine.evaluation.completions import judge
from engine.evaluation.functions import HeldOutFunction, choose_functions
from engine.evaluation.held_out import HeldOut
from engine.evaluation.intervals import FEWEST
from engine.evaluation.result import Evaluation, samples_of, task_result
from engine.evaluation.tally import LossTally, by_language, by_position, overall, tally_losses
from engine.evaluation.tasks import Task, complete, tasks_of
from engine.steps.held_out_loss import choose_windows

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
    baselines: Baselines | None = None,
) -> Evaluation:
    """Scores both models on the same tokens and the same functions.

    Args:
        pair: The models.
        held_out: Files that training never saw.
        encoder: Their tokenizer.
        settings: Extent of the evaluation.
        subject: Names for the result.
        progress: See `Progress`.
        baselines: Keeps the base model's scores for the next call with the same files and settings.
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

    asked = None if baselines is None else _asked(held_out, encoder, settings, functions, budget, subject)
    base = None if baselines is None else _read(baselines.read("evaluation", asked), held_out, functions)
    if base is None:
        base = measure(pair.base(), "base model")
        if baselines is not None:
            baselines.keep("evaluation", asked, _as_json(base))
    else:
        progress(1, 1, "base model, scored in an earlier evaluation")
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


# --- kept scores of the base model --------------------------------------------------------------------------------


def _asked(
    held_out: HeldOut,
    encoder: Encoder,
    settings: EvaluationSection,
    functions: Sequence[HeldOutFunction],
    budget: int,
    subject: Subject,
) -> dict[str, Any]:
    """Returns all that the base model's scores depend on besides the model."""
    return {
        "windows": digest_windows(choose_windows(held_out.windows, settings.tokens)),
        "files": digest([[file.path for file in held_out.files], held_out.offsets.tolist()]),
        "functions": digest([[f.path, f.prefix, f.body, f.suffix] for f in functions]),
        "tasks": list(tasks_of(encoder)) if functions else [],
        "lengths": [settings.tokens, budget, subject.context],
    }


def _as_json(measured: _Measured) -> dict[str, Any]:
    return {
        "sums": measured.tally.sums.tolist(),
        "counts": measured.tally.counts.tolist(),
        "written": {task: [[c.text, c.marks.ends] for c in found] for task, found in measured.written.items()},
    }


def _read(value: Any, held_out: HeldOut, functions: Sequence[HeldOutFunction]) -> _Measured | None:
    """Reads a kept score; None if it is missing or not what `_as_json` wrote."""
    try:
        sums, counts = (np.array(value[name], dtype=np.float64) for name in ("sums", "counts"))
        if sums.shape != counts.shape or len(sums) != len(held_out.files):
            return None
        written = {
            task: [judge(function, text, ends=ends) for function, (text, ends) in zip(functions, found, strict=True)]
            for task, found in value["written"].items()
        }
    except (TypeError, KeyError, ValueError, AttributeError):
        return None
    return _Measured(LossTally(sums, counts), written)


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
