"""Measures a base model and the tuned one on held-out files: perplexity, and functions that they complete."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.evaluation import kept_scores
from engine.evaluation.asking import Asking
from engine.evaluation.baselines import Baselines
from engine.evaluation.functions import HeldOutFunction, SourceText, choose_functions
from engine.evaluation.general import general_rows, tally_general
from engine.evaluation.guesses import mark_guesses
from engine.evaluation.held_out import HeldOut
from engine.evaluation.intervals import FEWEST
from engine.evaluation.kept_scores import ASKED, PLAIN, Measured, Requests
from engine.evaluation.lines import choose_lines
from engine.evaluation.result import ASKED_TASK, Evaluation, Excerpt, TaskResult, samples_of, task_result
from engine.evaluation.retrieval import RepositoryPrompts
from engine.evaluation.tally import LossTally, by_language, by_position, overall, tally_losses
from engine.evaluation.tasks import Before, Task, ask, complete, tasks_of
from engine.generation.sampling import Sampling
from engine.quantities import counted

if TYPE_CHECKING:
    from engine.config import EvaluationSection
    from engine.evaluation.completions import Completion
    from engine.generation.run_models import ModelPair, Scored
    from engine.tokenization.encoder import Encoder

SNIPPETS, FILES = "snippets", "files"
"""What a prompt holds beside the request's own file. The whole files are for the base model alone."""
LONG_PROMPT = 16_384
"Tokens of a prompt of whole files, at most: each request reads it anew."
LINE_TOKENS = 64
"Tokens of a completed line, at most."
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


def evaluate_pair(
    pair: ModelPair,
    held_out: HeldOut,
    encoder: Encoder,
    settings: EvaluationSection,
    subject: Subject,
    progress: Progress,
    *,
    baselines: Baselines | None = None,
    trained: Sequence[SourceText] = (),
    asking: Asking | None = None,
) -> Evaluation:
    """Scores both models on the same tokens, lines and functions.

    Args:
        pair: The models.
        held_out: Files that training never saw.
        encoder: Their tokenizer.
        settings: Extent of the evaluation.
        subject: Names for the result.
        progress: See `Progress`.
        baselines: Keeps the base model's scores for the next call with the same files and settings.
        trained: Files that training saw, for prompts with text of them; none are made of nothing.
        asking: Asks for functions through the model's chat template too; None where it has none.
    """
    began = time.monotonic()
    budget = min(settings.function_tokens, subject.context // 2)
    drawn = Sampling(temperature=settings.temperature, top_p=settings.top_p)

    def fits(function: HeldOutFunction) -> bool:
        [ids] = encoder.encode_documents([(function.path, function.body)])
        return len(ids) <= budget

    texts = list(held_out.texts(encoder))
    functions = choose_functions(texts, settings.functions, fits)
    lines = choose_lines(texts, settings.lines)
    requests: Requests = {}
    if lines:
        requests["next line"] = lines, min(LINE_TOKENS, subject.context // 2)
    if functions:
        requests |= dict.fromkeys(tasks_of(encoder), (functions, budget))
    near = RepositoryPrompts(trained, encoder) if trained and settings.retrieval and requests else None

    def measure(opened: AbstractContextManager[Scored], name: str, *, base: bool) -> Measured:
        with opened as scored:

            def report(done: int, total: int, what: str) -> None:
                progress(done, total, f"{what}, {name}")

            scores_of = scored.step.token_scores
            tally = tally_losses(scores_of, held_out, max_tokens=settings.tokens, progress=report)
            general = None
            if settings.general:
                general = tally_general(scores_of, encoder, context=subject.context, progress=report)
            written: dict[tuple[Task, str], list[Completion]] = {}
            if not requests:
                scored.step.close()
                return Measured(tally, written, general)
            with scored.writing() as model:
                for task, (bodies, most) in requests.items():
                    for arm, before in _arms(near, task, base=base).items():
                        context = min(subject.context, LONG_PROMPT) if arm == FILES else subject.context
                        written[task, arm] = complete(
                            model,
                            encoder,
                            bodies,
                            task,
                            context=context,
                            max_tokens=most,
                            progress=report,
                            before=before,
                            drawn=drawn,
                        )
                if asking is not None and functions:
                    written["completion", ASKED] = ask(
                        model,
                        encoder,
                        asking,
                        functions,
                        context=subject.context,
                        max_tokens=budget,
                        progress=report,
                        drawn=drawn,
                    )
        return Measured(tally, written, general)

    prompts = [] if near is None else trained
    asked = kept_scores.asked(held_out, encoder, settings, requests, prompts, asking)
    asked["lengths"] = [settings.tokens, budget, subject.context]
    if drawn.temperature:
        asked["drawn"] = [drawn.temperature, drawn.top_p]
    base = None if baselines is None else kept_scores.read(baselines.read("evaluation", asked), held_out, requests)
    if base is None:
        base = measure(pair.base(), "base model", base=True)
        if baselines is not None:
            baselines.keep("evaluation", asked, kept_scores.as_json(base))
    else:
        progress(1, 1, "base model, scored in an earlier evaluation")
    tuned = measure(pair.tuned(), "tuned model", base=False)
    row = overall(base.tally, tuned.tally)
    guessed, excerpts = _guessed(base.tally, tuned.tally, held_out, encoder)
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
        tasks=(*guessed, *_tasks(base, tuned)),
        samples=samples_of(functions, base.written["completion", PLAIN], tuned.written["completion", PLAIN])
        if functions
        else (),
        excerpts=excerpts,
        arms=tuple(_compared(base, tuned)),
        general=() if base.general is None or tuned.general is None else general_rows(base.general, tuned.general),
        notes=tuple(_notes(functions, settings, row.files)),
    )


def _arms(near: RepositoryPrompts | None, task: Task, *, base: bool) -> dict[str, Before | None]:
    """Returns what a model's prompts hold for a task, by name."""
    arms: dict[str, Before | None] = {PLAIN: None}
    if near is not None and task != "fill-in-the-middle":
        arms[SNIPPETS] = near.snippets
        if base and task == "completion":
            arms[FILES] = near.files
    return arms


def _guessed(
    base: LossTally, tuned: LossTally, held_out: HeldOut, encoder: Encoder
) -> tuple[tuple[TaskResult, ...], tuple[Excerpt, ...]]:
    if base.guesses is None or tuned.guesses is None:
        return (), ()
    return mark_guesses(base.guesses, tuned.guesses, held_out, encoder)


def _tasks(base: Measured, tuned: Measured) -> Iterator[TaskResult]:
    """Yields both models on the same requests: of the file alone, and asked through the chat template."""
    for (task, arm), completions in base.written.items():
        if arm == PLAIN:
            yield task_result(task, completions, tuned.written[task, arm])
        elif arm == ASKED:
            yield task_result(ASKED_TASK, completions, tuned.written[task, arm])


def _compared(base: Measured, tuned: Measured) -> Iterator[TaskResult]:
    """Yields every other way to answer a request, against the plain base model."""
    for measured, name in ((base, "base"), (tuned, "adapter")):
        for (task, arm), completions in measured.written.items():
            if arm != PLAIN:
                yield task_result(task, base.written[task, PLAIN], completions, f"{name} + {arm}")


def _notes(functions: Sequence[HeldOutFunction], settings: EvaluationSection, files: int) -> Sequence[str]:
    notes = []
    if settings.temperature and (functions or settings.lines):
        notes.append(
            f"completed text was drawn at temperature {settings.temperature:g}, top-p {settings.top_p:g}: "
            "another draw has other marks"
        )
    if settings.functions and not functions:
        notes.append(
            "no held-out file that parses has a function of a suitable length in a language whose grammar is known"
        )
    elif len(functions) < settings.functions:
        notes.append(f"the held-out files have only {counted(len(functions), 'function')} of a suitable length")
    if files < FEWEST:
        notes.append(f"{counted(files, 'file')} {'was' if files == 1 else 'were'} scored: too few for an interval")
    return notes
