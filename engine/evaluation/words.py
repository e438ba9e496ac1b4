"""Formats the figures of an evaluation, the same for the terminal and for the report."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from engine.plan.tiers import LEAST_UPDATES
from engine.quantities import counted

if TYPE_CHECKING:
    from engine.evaluation.intervals import Interval
    from engine.evaluation.result import Evaluation, MarkRow
    from engine.evaluation.tally import PerplexityRow

Row = tuple[str, str, str, str, str, str]
"""Name, base, tuned, difference, the difference's interval, sample."""

TASK_WORDS = {
    "completion": "completed",
    "fill-in-the-middle": "filled in",
    "next line": "next line",
    "next token": "next tokens",
    "next name": "names",
    "asked": "asked for as in a chat",
}
MARK_WORDS = {
    "parses": "files that parse",
    "ends": "bodies that come to an end",
    "exact": "exact",
    "edit similarity": "edit similarity",
    "identifiers": "identifiers hit",
    "guessed": "guessed",
    "guessed, new": "guessed, new in their file",
}
GUESSING = ("next token", "next name")
"Tasks without text of their own: what is likeliest behind the true text (engine.evaluation.guesses)."
SAMPLES = {"next line": "line", "next token": "token", "next name": "name"}
"""What a task was measured over, in the singular; other tasks over functions."""


ARM_MARKS = ("parses", "exact", "edit similarity")
"Marks by which other ways to answer are compared; all are in the JSON."


def too_few_updates(updates: int) -> str:
    """Says that a run made too few updates for a change to mean anything; "" where it made enough."""
    if updates >= LEAST_UPDATES:
        return ""
    made = "one update" if updates == 1 else counted(updates, "update")
    return f"{made}: too few to tell, learning needs about {LEAST_UPDATES}"


def figure_sections(evaluation: Evaluation) -> Iterator[tuple[str, list[Row]]]:
    """Yields every figure under headings: perplexity, by position, then the marks of each task and way to answer.

    A heading says what its rows are measured over; a row over fewer has their number beside its name.
    """
    whole = evaluation.perplexity
    rows = [perplexity_row(whole, "all")]
    if len(evaluation.by_language) > 1:
        rows += [perplexity_row(row, f"{row.name} ({row.tokens:,})") for row in evaluation.by_language]
    yield f"perplexity, over {counted(whole.tokens, 'token')}", rows
    if evaluation.by_position:
        yield (
            "perplexity after so many tokens",
            [perplexity_row(row, f"{row.name} ({row.tokens:,})") for row in evaluation.by_position],
        )
    for task in (*evaluation.tasks, *evaluation.arms):
        way = "" if task.arm == "adapter" else f": {task.arm}"
        marks = [row for row in task.rows if not way or row.name in ARM_MARKS]
        sample = counted(task.functions, SAMPLES.get(task.task, "function"))
        # The first row says that all of them are guesses.
        names = [
            MARK_WORDS[row.name].removeprefix("guessed, ")
            + ("" if row.functions == task.functions else f" ({row.functions:,})")
            for row in marks
        ]
        if marks:
            yield (
                f"{TASK_WORDS[task.task]}{way}, over {sample}",
                [mark_row(row, name, task.task) for row, name in zip(marks, names, strict=True)],
            )
    if evaluation.general:
        yield (
            "perplexity of other text",
            [perplexity_row(row, f"{row.name} ({row.tokens:,})") for row in evaluation.general],
        )


def mark_name(task: str, mark: str) -> str:
    """Names a mark of a task, as a row of a table."""
    if task in GUESSING:
        return f"{TASK_WORDS[task]} {MARK_WORDS[mark]}"
    return f"{MARK_WORDS[mark]}, {TASK_WORDS[task]}"


def perplexity_row(row: PerplexityRow, name: str) -> Row:
    """Formats a perplexity; its difference is relative."""
    return (
        name,
        number(row.base),
        number(row.tuned),
        f"{row.change:+.1%}",
        interval_words(row.change_interval, "{:+.1%}"),
        f"{row.tokens:,} tokens",
    )


def mark_row(row: MarkRow, name: str, task: str) -> Row:
    """Formats a share of 1; its difference is in points."""
    return (
        name,
        f"{row.base:.1%}",
        f"{row.tuned:.1%}",
        f"{100 * row.difference:+.1f} points",
        interval_words(row.difference_interval, "{:+.1f}", scale=100),
        counted(row.functions, SAMPLES.get(task, "function")),
    )


def change_words(row: MarkRow, sample: str = "function") -> str:
    """Formats a mark before and after, its interval, and whether chance can explain the difference.

    Args:
        row: A share of 1, as of files that parse.
        sample: What it was measured over, in the singular.
    """
    interval = row.difference_interval
    if interval is None:
        sure = "too few to tell from chance"
    elif interval.low > 0:
        sure = "more, and not by chance"
    elif interval.high < 0:
        sure = "fewer, and not by chance"
    else:
        sure = "a difference that chance can explain"
    ends = "" if interval is None else f", 95% interval {interval_words(interval, '{:+.1f}', scale=100)}"
    over = counted(row.functions, sample)
    return f"{row.base:.1%} → {row.tuned:.1%} ({100 * row.difference:+.1f} points{ends}, over {over}; {sure})"


def interval_words(interval: Interval | None, form: str, scale: float = 1.0) -> str:
    """Formats both ends, or the reason why there are none."""
    if interval is None:
        return "too few"
    return f"{form.format(scale * interval.low)} to {form.format(scale * interval.high)}"


def number(value: float | None) -> str:
    """Formats a perplexity with its significant digits."""
    if value is None:
        return "not measured"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
