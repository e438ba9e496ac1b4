"""Formats a run's result: before and after, planned and measured, next steps. Pure functions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.cells import chop_cells
from textual.content import Content

from elite_tui.format.figures import (
    NOT_AVAILABLE,
    bytes_in_words,
    count_in_words,
    duration_in_words,
    printable,
)
from elite_tui.runs.finish_line import FinishLine, reference_words
from elite_tui.runs.name_excerpt import name_excerpt
from elite_tui.runs.panels import state_mark
from engine.quantities import counted

if TYPE_CHECKING:
    from elite_tui.runs.report import RunReport
    from elite_tui.runs.view import RunView

HEADING = "bold $primary"
LABEL = 12
"""Cells before a bar or a value."""
WAYS_SHOWN = 6
"""Lines shown of other ways to complete the same functions."""


def verdict(run: RunView) -> Content:
    """Formats the run's outcome in one or two lines."""
    mark, style = state_mark(run)
    if run.failed is not None:
        return Content.assemble(
            (f"{mark} failed   ", f"{style} bold"),
            printable(run.failed.message),
            "\n",
            (printable(run.failed.hint), "$text-accent"),
        )
    if run.finished is None:
        return Content.assemble(("● under way   ", "$text-primary bold"), "this page fills when the run ends")
    done = run.finished
    details = [counted(done.steps, "step"), f"{count_in_words(done.tokens)} tokens", duration_in_words(done.seconds)]
    if run.started is not None:
        details.insert(0, printable(run.started.model))
    return Content.assemble((f"{mark} {done.status}   ", f"{style} bold"), " · ".join(details))


def change_words(line: FinishLine) -> Content:
    """Formats the change of the perplexity, its interval, and how sure it is."""
    own = f"\n{line.own}" if line.own else ""
    return Content.assemble((line.change, f"bold {line.style}"), "\n", (line.sureness, line.style), (own, "$muted"))


def not_scored(run: RunView) -> Content:
    """Says why a run has no finish line."""
    if run.finished is None and run.failed is None:
        return Content.styled("the finish line comes with the end of the run", "$muted")
    return Content.styled("not scored at both ends: there is no before and after to compare", "$muted")


def compile_rate(report: RunReport | None, width: int, steps: int | None = None) -> list[Content]:
    """Formats the share of completions that parse, before and after; empty if not measured.

    Args:
        report: The results in the run's folder.
        width: Available columns.
        steps: Updates that the run made; None where that is not known.
    """
    if report is None or (report.compile_rate_before is None and report.compile_rate_after is None):
        return []
    before, after = report.compile_rate_before, report.compile_rate_after
    lines = _share("Completions that parse", before, after, width, steps, by_chance=report.compile_rate_by_chance)
    lines += [
        Content.styled(f"{printable(name)}: {share:.0%}", "$text-accent" if share > (after or 0) else "$muted")
        for name, share in report.ways[:WAYS_SHOWN]
    ]
    lines += [
        Content.styled(f"▲ {change:.1%} higher on {printable(name)}: forgotten for it", "$text-warning")
        for name, change in report.forgotten[:WAYS_SHOWN]
    ]
    return lines


def names_guessed(report: RunReport | None, width: int, steps: int | None = None) -> list[Content]:
    """Formats the share of held-out names that each model guesses; empty if not measured. Arguments as above."""
    if report is None or report.names is None:
        return []
    names = report.names
    lines = _share("Names guessed", names.before, names.after, width, steps, by_chance=names.by_chance)
    return [*lines, *(line for found in report.excerpts[:1] for line in name_excerpt(found, width))]


def _share(
    title: str, before: float | None, after: float | None, width: int, steps: int | None, *, by_chance: bool
) -> list[Content]:
    from engine.evaluation.words import too_few_updates

    lines = [Content.styled(title, HEADING).append(Content.styled("  higher is better", "$muted"))]
    lines += _two_bars(before, after, 1.0, width, lambda value: NOT_AVAILABLE if value is None else f"{value:.0%}")
    if before is not None and after is not None:
        sign, style = (
            ("▲", "$text-success") if after > before else ("▼", "$text-warning") if after < before else ("=", "$muted")
        )
        few = too_few_updates(steps) if steps is not None else ""
        words = f", {few}" if few else ", too few to tell from chance" if by_chance else ""
        if words:
            sign, style = "=", "$muted"
        lines.append(Content.styled(f"{sign} {100 * (after - before):+.0f} points{words}", style))
    return lines


def _two_bars(
    before: float | None, after: float | None, whole: float | None, width: int, words: Callable[[float | None], str]
) -> list[Content]:
    cells = max(10, min(48, width - LABEL - 14))
    lines = []
    for name, value, style in (("before", before, "$secondary"), ("after", after, "$primary")):
        full = round(cells * max(0.0, min(1.0, value / whole))) if value is not None and whole else 0
        rest = ("─" if value is not None else "┄") * (cells - full)
        lines.append(
            Content.assemble((f"{name:<{LABEL}}", "$muted"), ("━" * full, style), (rest, "$faint"), f"  {words(value)}")
        )
    return lines


def foreseen(run: RunView, report: RunReport | None) -> list[Content]:
    """Formats planned beside measured values, with their differences."""
    plan = report.planned if report is not None else None
    done, started = run.finished, run.started
    steps = run.history.steps
    seconds, count = steps.total("seconds"), steps.appended
    mean = steps.mean("seconds")
    gpu = (
        done.gpu_peak if done is not None and done.gpu_peak is not None else max(steps.known("gpu_peak"), default=None)
    )
    host = (
        done.host_peak
        if done is not None and done.host_peak is not None
        else max(steps.known("host_used"), default=None)
    )
    planned_step = plan.step_seconds if plan is not None else None
    planned_gpu = started.planned_gpu_bytes if started is not None else None
    planned_host = started.planned_host_bytes if started is not None else None
    total = planned_step * count if planned_step is not None and count else None
    rows = [
        ("a step", planned_step, mean, duration_in_words),
        ("all steps", total, seconds, duration_in_words),
        ("RAM peak", planned_host or (plan.host_bytes if plan else None), host, bytes_in_words),
    ]
    if gpu is not None:
        rows.insert(2, ("GPU peak", planned_gpu or (plan.gpu_bytes if plan else None), gpu, bytes_in_words))
    lines = [Content.styled(f"{'':<{LABEL}}{'predicted':>12}{'measured':>12}", "$muted")]
    for name, predicted, measured, words in rows:
        difference = ""
        if predicted and measured is not None:
            difference = f"   {measured / predicted - 1:+.0%}"
        lines.append(
            Content.assemble(
                (f"{name:<{LABEL}}", "$muted"), f"{words(predicted):>12}{words(measured):>12}", (difference, "$muted")
            )
        )
    return lines


def places(run: RunView, report: RunReport | None, path: Path, width: int) -> list[Content]:
    """Formats the run directory and its contents."""
    adapter = run.finished.adapter if run.finished is not None else None
    rows = [
        ("folder", str(path)),
        ("adapter", f"{adapter}/" if adapter else "none was saved"),
        ("checkpoint", run.checkpoint.path if run.checkpoint else "none"),
        ("log", "engine.log"),
    ]
    if report is not None and report.page:
        rows.insert(2, ("report", "report.md"))
    lines = []
    for name, value in rows:
        # A long path wraps below itself, so that it can be selected and copied.
        for index, piece in enumerate(chop_cells(printable(value), max(10, width - LABEL)) or [""]):
            lines.append(Content.assemble((f"{name if not index else '':<{LABEL}}", "$muted"), piece))
    return lines


def next_steps(run: RunView, report: RunReport | None) -> list[Content]:
    """Formats the follow-up commands that this engine has."""
    reference = reference_words(run, report)
    commands = report.commands if report is not None else frozenset()
    steps = []
    adapter = run.finished.adapter if run.finished is not None else None
    if run.failed is not None or (run.finished is not None and run.finished.status == "stopped"):
        steps.append((f"engine train --resume {reference}", "go on from its last checkpoint"))
    if adapter and "export" in commands:
        steps += [
            (f"engine export {reference} --to merged", "one model in Hugging Face's format, the adapter folded in"),
            (f"engine export {reference} --to gguf", "one file for llama.cpp and Ollama"),
        ]
    if adapter and "generate" in commands:
        steps.append((f"engine generate {reference}", "try it"))
    if adapter and "evaluate" in commands:
        steps.append((f"engine evaluate {reference}", "score it again, with samples"))
    if adapter:
        whole = "; report.md has all of it" if report is not None and report.page else ""
        steps.append(
            (f'PeftModel.from_pretrained(model, "{printable(adapter)}")', f"in Python, from the run's folder{whole}")
        )
    steps.append((f"elite-tui monitor {reference}", "look at this run again"))
    return [
        line
        for command, what in steps
        for line in (Content.styled(command, "bold"), Content(f"    {what}").stylize("$muted"))
    ]
