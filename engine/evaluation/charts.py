"""Charts of a report, each as SVG text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from engine.evaluation.svg import COLOURS, Band, Bars, Line, bar_chart, line_chart
from engine.evaluation.words import MARK_WORDS, SAMPLES, TASK_WORDS

if TYPE_CHECKING:
    from engine.evaluation.curve import RunCurve
    from engine.evaluation.intervals import Interval
    from engine.evaluation.projection import Score
    from engine.evaluation.result import Evaluation, TaskResult

_GREY, _BLUE, _RED, _GREEN = COLOURS


def charts_of(curve: RunCurve, scores: Sequence[Score], evaluation: Evaluation | None) -> Iterator[tuple[str, str]]:
    """Yields each chart that has data, as (file name without suffix, SVG)."""
    if len(curve.training) > 1:
        yield "loss", loss_chart(curve, scores)
    if evaluation is not None:
        if len(evaluation.by_position) > 1:
            yield "positions", position_chart(evaluation)
        for task in (task for task in evaluation.tasks if task.task not in SAMPLES):
            yield task.task, function_chart(task)


def loss_chart(curve: RunCurve, scores: Sequence[Score]) -> str:
    """Draws training and held-out loss over tokens, with the projections made half-way or later."""
    bands = [
        Band(name="projected before", x=s.projection.tokens, low=s.projection.low, middle=s.projection.loss,
             high=s.projection.high, colour=_GREEN)
        for s in scores[-1:]
    ]  # fmt: skip
    return line_chart(
        "Loss",
        [
            Line(name="training", points=curve.training, colour=_GREY, width=1.0),
            Line(name="held out", points=curve.held_out, colour=_RED, width=2.0, dots=True),
        ],
        x_title="tokens trained on",
        y_title="nats a token",
        bands=bands,
    )


def position_chart(evaluation: Evaluation) -> str:
    """Draws perplexity by the number of context tokens before a token."""
    rows = evaluation.by_position
    return bar_chart(
        "Perplexity by tokens of context before a token",
        [row.name for row in rows],
        [
            Bars(name="base", values=[row.base for row in rows], colour=_GREY,
                 intervals=[_ends(row.base_interval) for row in rows]),
            Bars(name="tuned", values=[row.tuned for row in rows], colour=_BLUE,
                 intervals=[_ends(row.tuned_interval) for row in rows]),
        ],
        y_title="perplexity, lower is better",
    )  # fmt: skip


def function_chart(task: TaskResult) -> str:
    """Draws the marks of completed functions."""
    return bar_chart(
        f"Held-out functions, {TASK_WORDS[task.task]}",
        [MARK_WORDS[row.name] for row in task.rows],
        [
            Bars(name="base", values=[100 * row.base for row in task.rows], colour=_GREY,
                 intervals=[_ends(row.base_interval, 100) for row in task.rows]),
            Bars(name="tuned", values=[100 * row.tuned for row in task.rows], colour=_BLUE,
                 intervals=[_ends(row.tuned_interval, 100) for row in task.rows]),
        ],
        y_title="percent, higher is better",
    )  # fmt: skip


def _ends(interval: Interval | None, scale: float = 1.0) -> tuple[float, float] | None:
    return None if interval is None else (scale * interval.low, scale * interval.high)
