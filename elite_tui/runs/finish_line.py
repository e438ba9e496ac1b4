"""Formats the finish line of a run: perplexity at both ends, its change, its interval, how sure it is. No I/O."""

from __future__ import annotations

import importlib.util
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from elite_tui.format.figures import number_in_words, printable

if TYPE_CHECKING:
    from elite_tui.runs.report import RunReport
    from elite_tui.runs.view import RunView


@dataclass(frozen=True, kw_only=True)
class FinishLine:
    """Perplexity at both ends of a run, in words."""

    before: str
    after: str
    change: str
    "The change with its sign, and its 95% interval where there is one."
    sureness: str
    "Whether the change means anything."
    style: str
    "Colour of the change: success only where it is an improvement that chance does not explain."
    sample: str
    "What was scored."
    own: str
    "The run's own scores, where the evaluation has others, of more tokens."


def finish_line(run: RunView, report: RunReport | None) -> FinishLine | None:
    """Returns the finish line of a run; None where it was not scored at both ends."""
    done = run.finished
    row = report.perplexity if report is not None else None
    before, after = (row.before, row.after) if row is not None else _of_run(run, report)
    if before is None or after is None:
        return None
    change = row.change if row is not None else (after / before - 1 if before else None)
    if change is None:
        return None
    low, high = (row.low, row.high) if row is not None else (None, None)
    ends = f" ({_percent(low)} to {_percent(high)})" if low is not None and high is not None else ""
    size = f"{_percent(change)}{ends}"
    sample = "files that it never saw"
    if row is not None and row.tokens and row.files:
        sample = f"{row.tokens:,.0f} tokens of {row.files:,.0f} files that it never saw"
    steps = done.steps if done is not None else run.done_steps
    own = ""
    theirs = (number_in_words(before), number_in_words(after))
    if row is not None and None not in (of_run := _of_run(run, None)):
        words = (number_in_words(of_run[0]), number_in_words(of_run[1]))
        own = f"scored while training: {' → '.join(words)}" if words != theirs else ""
    sign, sureness, style = _judge(change, low, high, scored=row is not None, steps=steps)
    return FinishLine(
        before=theirs[0],
        after=theirs[1],
        change=f"{sign} {size}",
        sureness=sureness,
        style=style,
        sample=sample,
        own=own,
    )


def _judge(change: float, low: float | None, high: float | None, *, scored: bool, steps: int) -> tuple[str, str, str]:
    """Returns the sign, how sure the change is, and its colour."""
    from engine.evaluation.words import too_few_updates

    if few := too_few_updates(steps):
        return "=", few, "$muted"
    if low is None or high is None:
        reason = "too few files to say whether by chance" if scored else "`engine evaluate` tells whether by chance"
        return "=" if scored else _arrow(change), reason, "$muted"
    if low <= 0 <= high:
        return "=", "a difference that chance can explain", "$muted"
    if high < 0:
        return "▼", "lower, and not by chance: it predicts this code better than the base model", "$text-success"
    return "▲", "higher, and not by chance: training has hurt; more epochs or a lower rate may help", "$text-warning"


def _arrow(change: float) -> str:
    return "▼" if change < 0 else "▲" if change > 0 else "="


def _percent(share: float) -> str:
    return f"{share:+.1%}".replace("-", "−")


def _of_run(run: RunView, report: RunReport | None) -> tuple[float | None, float | None]:
    """Returns the perplexities that the run itself has scored, else those in its folder."""
    done = run.finished
    before = done.perplexity_before if done is not None else None
    if before is None and run.first_evaluation is not None:
        before = run.first_evaluation.perplexity
    after = done.perplexity_after if done is not None else None
    if report is not None:
        before = before if before is not None else report.perplexity_before
        after = after if after is not None else report.perplexity_after
    return before, after


def reference_words(run: RunView, report: RunReport | None) -> str:
    """Returns the run's reference as it is typed in a shell."""
    return shlex.quote(printable(report.reference if report is not None else run.run_id))


def use_command(run: RunView, report: RunReport | None) -> tuple[str, str]:
    """Returns the command that puts the result to use and what it does; empty where there is no result."""
    adapter = run.finished.adapter if run.finished is not None else None
    commands = report.commands if report is not None else frozenset()
    reference = reference_words(run, report)
    if not adapter:
        return "", ""
    if "serve" in commands and all(importlib.util.find_spec(name) for name in ("starlette", "uvicorn")):
        return f"engine serve {reference}", "an OpenAI-compatible endpoint for editors, on this machine"
    if "generate" in commands:
        return f"engine generate {reference}", "lets both models go on with a prompt"
    return "", ""
