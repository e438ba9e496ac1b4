"""Report sections of measured results: quality, functions, samples, projection. Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from engine.evaluation.markdown import code, code_block, table
from engine.evaluation.words import (
    ARM_MARKS,
    GUESSING,
    MARK_WORDS,
    SAMPLES,
    TASK_WORDS,
    change_words,
    mark_name,
    mark_row,
    number,
    perplexity_row,
)
from engine.quantities import counted
from engine.steps.held_out_loss import perplexity

if TYPE_CHECKING:
    from engine.evaluation.projection import Projection, Score
    from engine.evaluation.result import Evaluation, Excerpt, Sample

_HEAD = ("", "base", "tuned", "difference", "95% interval", "over")
_SHOWN = 3
"""Number of samples in the report; evaluation.json has more."""


def verdict(evaluation: Evaluation) -> str:
    """States the conclusion that the figures support, in a sentence or two."""
    row = evaluation.perplexity
    interval = row.change_interval
    if interval is None:
        sure = "too few files to say whether by chance"
    elif interval.high < 0:
        sure = "lower, and not by chance"
    elif interval.low > 0:
        sure = "higher, and not by chance: training has hurt"
    else:
        sure = "a difference that chance can explain"
    text = f"Perplexity {number(row.base)} → {number(row.tuned)} ({row.change:+.1%}; {sure})."
    rate = evaluation.completed("parses")
    if rate is not None:
        text += f" Files that parse with a function completed by the model: {change_words(rate)}."
    return text


def quality(evaluation: Evaluation, pictures: Sequence[str]) -> Iterator[str]:
    """Renders perplexity by language and position."""
    scored = f"{evaluation.tokens:,} tokens of {evaluation.files:,} files"
    yield "## Held-out perplexity"
    rows = [perplexity_row(evaluation.perplexity, "all")]
    rows += [perplexity_row(row, row.name) for row in evaluation.by_language if len(evaluation.by_language) > 1]
    yield table(rows, _HEAD, figures=True)
    yield (
        f"Over {scored} that training never saw. Perplexity p means: as uncertain of the next token as a choice among "
        "p equally likely ones. Both models are scored on the same tokens; intervals resample files."
    )
    yield "By the number of tokens of context before a token:"
    yield table([perplexity_row(row, row.name) for row in evaluation.by_position], _HEAD, figures=True)
    if "positions" in pictures:
        yield "![perplexity by position](charts/positions.svg)"


def guesses(evaluation: Evaluation) -> Iterator[str]:
    """Renders the shares of tokens and names that the models guess."""
    rows = [
        mark_row(row, mark_name(task.task, row.name), task.task)
        for task in evaluation.tasks
        if task.task in GUESSING
        for row in task.rows
    ]
    if rows:
        yield "## First guesses"
        yield table(rows, _HEAD, figures=True)
        yield (
            "Shares of the scored tokens, and of the names in them, that each model's likeliest text gets right behind "
            "the true text before it. New names stand in their file for the first time: to know them takes more than "
            "to repeat what is above."
        )


def excerpts(found: Sequence[Excerpt]) -> Iterator[str]:
    """Renders lines of held-out files, and which of their names each model guesses."""
    if not found:
        return
    yield "## Names in files that it never saw"
    yield (
        "The lines with most names of the first files in a fixed random order, whatever came out, and the names that "
        "one of the models alone would have written next."
    )
    for excerpt in found:
        yield f"### {code(excerpt.file)}"
        yield code_block(excerpt.text)
        rows = []
        for who, base, tuned in (("both", True, True), ("tuned alone", False, True), ("base alone", True, False)):
            names = [name for name in excerpt.names if (name.base, name.tuned) == (base, tuned)]
            shown = "" if who == "both" else ", ".join(code(excerpt.text[name.start : name.stop]) for name in names)
            rows.append((who, f"{len(names)} of {len(excerpt.names)}", shown))
        yield table(rows, ("guessed by", "names", ""))


def functions(evaluation: Evaluation, pictures: Sequence[str]) -> Iterator[str]:
    """Renders the marks of completed functions."""
    if tasks := [task for task in evaluation.tasks if task.task not in GUESSING]:
        yield "## Held-out functions"
        for task in tasks:
            name = TASK_WORDS[task.task].capitalize()
            over = counted(task.functions, SAMPLES.get(task.task, "function"))
            yield f"{name} ({over}, the likeliest text of each model):"
            yield table([mark_row(row, MARK_WORDS[row.name], task.task) for row in task.rows], _HEAD, figures=True)
            if task.task in pictures:
                yield f"![functions, {TASK_WORDS[task.task]}](charts/{task.task}.svg)"
    if evaluation.arms:
        yield "## With text of the repository in the prompt"
        rows = [
            mark_row(row, f"{TASK_WORDS[task.task]}, {MARK_WORDS[row.name]}: {task.arm}", task.task)
            for task in evaluation.arms
            for row in task.rows
            if row.name in ARM_MARKS
        ]
        yield table(rows, ("", "base", "this way", *_HEAD[3:]), figures=True)
        yield (
            "The base model answers the same requests without anything added. Snippets are the pieces of the training "
            "files nearest to the request (BM25); files are whole ones, nearest in the tree first, as far as they fit. "
            "Where the base model with snippets does as well as the adapter, no training was needed."
        )
    if evaluation.general:
        yield "## General code and text"
        yield table([perplexity_row(row, row.name) for row in evaluation.general], _HEAD, figures=True)
        yield "Pieces of Python's standard library and of plain prose. A rise is what training made the model forget."
    if evaluation.notes:
        yield "\n".join(f"- {code(note)[1:-1]}" for note in evaluation.notes)


def samples(found: Sequence[Sample]) -> Iterator[str]:
    """Renders bodies of both models beside the repository's own."""
    if not found:
        return
    yield "## Samples"
    yield "The first functions of a fixed random order, whatever came out. What the models wrote was never run."
    for sample in found[:_SHOWN]:
        yield f"### {code(sample.file)}"
        yield code_block(sample.prompt)
        for name, text in (("base model", sample.before), ("tuned", sample.after), ("repository", sample.truth)):
            yield f"{name}:"
            yield code_block(text)


def projections(scores: Sequence[Score], ahead: Projection | None) -> Iterator[str]:
    """Renders earlier projections beside the actual loss."""
    if not scores and ahead is None:
        return
    yield "## Projection"
    yield (
        "A power law through the held-out losses of this run so far, and what past runs of this model came to, "
        "projected to the end. Four of five scores should fall into the interval."
    )
    if ahead is not None:
        yield f"Not at its end yet; projected for {ahead.tokens:,.0f} tokens: {_projected(ahead)}."
    if scores:
        rows = [
            (
                f"{s.projection.points} scores, {s.projection.runs} past runs",
                _projected(s.projection),
                f"{s.happened:.3f} ({number(perplexity(s.happened))})",
                "inside" if s.inside else "outside",
                f"{s.error:+.3f}",
            )
            for s in scores
        ]
        head = ("made of", "projected loss (perplexity)", "happened", "interval", "error")
        yield table(rows, head, figures=True)


def _projected(projection: Projection) -> str:
    low, high = perplexity(projection.low), perplexity(projection.high)
    return (
        f"{projection.loss:.3f} ({number(perplexity(projection.loss))}), {projection.low:.3f} to {projection.high:.3f} "
        f"({number(low)} to {number(high)})"
    )
