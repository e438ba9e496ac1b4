"""Evaluation: all measurements of a base model and the tuned one, as values and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from engine.evaluation.completions import Completion, Marks
from engine.evaluation.functions import HeldOutFunction
from engine.evaluation.intervals import Interval, mean_interval, paired_shares, wilson
from engine.evaluation.tally import PerplexityRow

FILE_NAME = "evaluation.json"
ASKED_TASK = "asked"
"""Functions that both models are asked for through the chat template."""
SAMPLES = 8
"""Number of functions kept in full for inspection."""
_PROMPT_LINES = 12


@dataclass(frozen=True, kw_only=True)
class MarkRow:
    """One mark of both models, over the functions that have it. All are shares of 1; higher is better."""

    name: str
    functions: int
    base: float
    tuned: float
    base_interval: Interval | None
    tuned_interval: Interval | None
    difference_interval: Interval | None
    "Interval of tuned - base, paired."

    @property
    def difference(self) -> float:
        """Tuned minus base."""
        return self.tuned - self.base


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """Results of both models on one task."""

    task: str
    functions: int
    rows: tuple[MarkRow, ...]
    arm: str = "adapter"
    "What is compared with the plain base model: the column `tuned`."


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One function with the bodies of both models. Untrusted text."""

    file: str
    prompt: str
    "Last lines before the body."
    before: str
    "Body by the base model."
    after: str
    "Body by the tuned model."
    truth: str


@dataclass(frozen=True, kw_only=True)
class GuessedName:
    """A name in an excerpt, by its characters, and which models guess it behind the text before."""

    start: int
    stop: int
    base: bool
    tuned: bool


@dataclass(frozen=True, kw_only=True)
class Excerpt:
    """Some lines of a held-out file with their names. Untrusted text."""

    file: str
    text: str
    names: tuple[GuessedName, ...]
    "Those all of whose tokens were scored, in their order."


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Measurements of a base model and the tuned one."""

    run: str
    model: str
    device: str
    context: int
    data: str
    "Description of the scored data."
    files: int
    tokens: int
    "Number of scored tokens."
    seconds: float
    perplexity: PerplexityRow
    by_language: tuple[PerplexityRow, ...]
    by_position: tuple[PerplexityRow, ...]
    tasks: tuple[TaskResult, ...] = ()
    samples: tuple[Sample, ...] = ()
    excerpts: tuple[Excerpt, ...] = ()
    arms: tuple[TaskResult, ...] = ()
    "Other ways to answer the same requests, each against the plain base model."
    general: tuple[PerplexityRow, ...] = ()
    "Perplexity of general code and text: what training cost."
    notes: tuple[str, ...] = ()
    "Remarks for the user."

    def as_json(self) -> dict[str, Any]:
        """Returns JSON values; the headline figures are at the top level."""
        rate = self.completed("parses")
        return {
            "perplexity_before": self.perplexity.base,
            "perplexity_after": self.perplexity.tuned,
            "compile_rate_before": None if rate is None else rate.base,
            "compile_rate_after": None if rate is None else rate.tuned,
            **asdict(self),
        }

    def completed(self, name: str) -> MarkRow | None:
        """Returns a mark of the completed functions, as a model is asked for them in use: through its chat template.

        A chat model answers a bare file with prose. Without a template, functions are continued from the file.
        """
        return self.mark(ASKED_TASK, name) or self.mark("completion", name)

    def mark(self, task: str, name: str) -> MarkRow | None:
        """Returns one row of one task; None where there is none."""
        rows = (row for found in self.tasks if found.task == task for row in found.rows if row.name == name)
        return next(rows, None)


def evaluation_from_json(data: Mapping[str, Any]) -> Evaluation:
    """Reads the output of `as_json`.

    Raises:
        KeyError, TypeError, ValueError, msgspec.ValidationError: the data is not an Evaluation.
    """
    import msgspec

    return msgspec.convert(dict(data), Evaluation)


_MARKS: tuple[tuple[str, Callable[[Marks], float | None]], ...] = (
    ("parses", lambda marks: float(marks.parses)),
    ("ends", lambda marks: float(marks.ends)),
    ("exact", lambda marks: float(marks.exact)),
    ("edit similarity", lambda marks: marks.edit_similarity),
    ("identifiers", lambda marks: marks.identifier_hits),
)
_SHARES = ("parses", "ends", "exact")


def task_result(task: str, base: Sequence[Completion], tuned: Sequence[Completion], arm: str = "adapter") -> TaskResult:
    """Computes the marks of both models on the same functions; `arm` names the second."""
    rows = []
    for name, mark in _MARKS:
        pairs = [(mark(b.marks), mark(t.marks)) for b, t in zip(base, tuned, strict=True)]
        known = np.array([pair for pair in pairs if None not in pair], dtype=np.float64).reshape(-1, 2)
        if len(known):
            rows.append(_mark_row(name, known))
    return TaskResult(task=task, functions=len(base), rows=tuple(rows), arm=arm)


def _mark_row(name: str, pairs: Any) -> MarkRow:
    difference = pairs[:, 1] - pairs[:, 0]

    def interval(column: int) -> Interval | None:
        values = pairs[:, column]
        return wilson(round(values.sum()), len(values)) if name in _SHARES else mean_interval(values)

    if name in _SHARES:
        between = paired_shares(int((difference > 0).sum()), int((difference < 0).sum()), len(pairs))
    else:
        between = mean_interval(difference)
    return MarkRow(
        name=name,
        functions=len(pairs),
        base=float(pairs[:, 0].mean()),
        tuned=float(pairs[:, 1].mean()),
        base_interval=interval(0),
        tuned_interval=interval(1),
        difference_interval=between,
    )


def samples_of(
    functions: Sequence[HeldOutFunction], base: Sequence[Completion], tuned: Sequence[Completion]
) -> tuple[Sample, ...]:
    """Takes the first few regardless of result: a selection by result would mislead."""
    triples = list(zip(functions, base, tuned, strict=True))[:SAMPLES]
    return tuple(
        Sample(
            file=function.path,
            prompt="\n".join(function.prefix.rstrip("\n").split("\n")[-_PROMPT_LINES:]),
            before=before.text,
            after=after.text,
            truth=function.body,
        )
        for function, before, after in triples
    )
