"""Formats a run's result: before and after, planned and measured, next steps. Pure functions."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.cells import cell_len, chop_cells, set_cell_size
from textual.content import Content

from elite_tui.format.figures import (
    NOT_AVAILABLE,
    bytes_in_words,
    count_in_words,
    duration_in_words,
    number_in_words,
    printable,
)
from elite_tui.runs.panels import state_mark

if TYPE_CHECKING:
    from elite_tui.runs.report import RunReport
    from elite_tui.runs.view import RunView

HEADING = "bold $primary"
LABEL = 12
"""Cells before a bar or a value."""
COLUMN = 44
"""Minimum width of each completion shown side by side, in cells."""
WAYS_SHOWN = 6
"""Lines shown of other ways to complete the same functions."""
SAMPLE_LINES = 12
"""Lines shown of one completion."""


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
    details = [f"{done.steps:,} steps", f"{count_in_words(done.tokens)} tokens", duration_in_words(done.seconds)]
    if run.started is not None:
        details.insert(0, printable(run.started.model))
    return Content.assemble((f"{mark} {done.status}   ", f"{style} bold"), " · ".join(details))


def perplexity(run: RunView, report: RunReport | None, width: int) -> list[Content]:
    """Formats held-out perplexity before and after, as bars relative to the larger one, and the change."""
    from engine.evaluation.words import too_few_updates

    done = run.finished
    before = done.perplexity_before if done else None
    after = done.perplexity_after if done else None
    if before is None and run.first_evaluation is not None:
        before = run.first_evaluation.perplexity
    if report is not None:
        before = before if before is not None else report.perplexity_before
        after = after if after is not None else report.perplexity_after
    lines = [
        Content.styled("Perplexity on files that it never saw", HEADING).append(
            Content.styled("  lower is better", "$muted")
        )
    ]
    lines += _two_bars(
        before, after, max((v for v in (before, after) if v is not None), default=None), width, number_in_words
    )
    if before and after is not None:
        change = (after - before) / before
        if change < 0 and done is not None and (few := too_few_updates(done.steps)):
            return [*lines, Content.styled(f"= {change:+.1%} after {few}", "$muted")]
        words = (
            f"▼ {-change:.1%} lower: it predicts this code better than the base model"
            if change < 0
            else f"▲ {change:.1%} higher: it predicts this code no better; more epochs or a lower rate may help"
        )
        return [*lines, Content.styled(words, "$text-success" if change < 0 else "$text-warning")]
    return [*lines, Content.styled(f"change {NOT_AVAILABLE}: the run was not scored at both ends", "$muted")]


def compile_rate(report: RunReport | None, width: int) -> list[Content]:
    """Formats the share of completions that parse, before and after; empty if not measured."""
    if report is None or (report.compile_rate_before is None and report.compile_rate_after is None):
        return []
    before, after = report.compile_rate_before, report.compile_rate_after
    lines = [Content.styled("Completions that parse", HEADING).append(Content.styled("  higher is better", "$muted"))]
    lines += _two_bars(before, after, 1.0, width, lambda value: NOT_AVAILABLE if value is None else f"{value:.0%}")
    if before is not None and after is not None:
        sign, style = (
            ("▲", "$text-success") if after > before else ("▼", "$text-warning") if after < before else ("=", "$muted")
        )
        if report.compile_rate_by_chance:
            sign, style = "=", "$muted"
        words = ", too few to tell from chance" if report.compile_rate_by_chance else ""
        lines.append(Content.styled(f"{sign} {100 * (after - before):+.0f} points{words}", style))
    lines += [
        Content.styled(f"{printable(name)}: {share:.0%}", "$text-accent" if share > (after or 0) else "$muted")
        for name, share in report.ways[:WAYS_SHOWN]
    ]
    lines += [
        Content.styled(f"▲ {change:.1%} higher on {printable(name)}: forgotten for it", "$text-warning")
        for name, change in report.forgotten[:WAYS_SHOWN]
    ]
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
    seconds = steps.known("seconds")
    mean = sum(seconds) / len(seconds) if seconds else None
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
    total = planned_step * len(steps) if planned_step is not None and len(steps) else None
    rows = [
        ("a step", planned_step, mean, duration_in_words),
        ("all steps", total, sum(seconds) if seconds else None, duration_in_words),
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
    reference = shlex.quote(printable(report.reference if report is not None else run.run_id))
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


def samples(report: RunReport | None, width: int) -> list[Content]:
    """Formats completions of the base and the fine-tuned model, side by side if the width allows, else in turn."""
    lines: list[Content] = []
    for number, sample in enumerate(report.samples if report is not None else (), start=1):
        if lines:
            lines.append(Content(""))
        lines.append(Content.assemble((f"sample {number}", "bold"), (f"  {printable(sample.file)}", "$muted")))
        lines += [Content.styled(line, "$muted") for line in _code(sample.prompt, width - 2, last=True)]
        parts = [("base model", "$secondary", sample.before), ("fine-tuned", "$primary", sample.after)]
        truth = [("in the repository", "$muted", sample.truth)] if sample.truth else []
        if width >= COLUMN * len(parts + truth):
            lines += _beside(parts + truth, width)
        elif width >= COLUMN * len(parts):
            lines += [*_beside(parts, width), *_in_turn(truth, width)]
        else:
            lines += _in_turn(parts + truth, width)
    return lines


def _beside(parts: Sequence[tuple[str, str, str]], width: int) -> list[Content]:
    free = (width - 3 * (len(parts) - 1)) // len(parts)
    columns = [[title, *_code(text, free)] for title, _, text in parts]
    lines = []
    for row in range(max(len(column) for column in columns)):
        cells = []
        for column, (_, style, _) in zip(columns, parts, strict=True):
            content = (
                Content.styled(column[row], f"bold {style}" if row == 0 else "") if row < len(column) else Content("")
            )
            cells.append(content.pad_right(max(0, free - content.cell_length)))
        lines.append(Content(" │ ").join(cells))
    return lines


def _in_turn(parts: Sequence[tuple[str, str, str]], width: int) -> list[Content]:
    lines = []
    for title, style, text in parts:
        lines.append(Content.styled(title, f"bold {style}"))
        lines += [Content(f"  {line}") for line in _code(text, width - 2)]
    return lines


def _code(text: str, width: int, *, last: bool = False) -> list[str]:
    """Cuts lines of code to a width and escapes them; with `last`, keeps the end."""
    lines = [printable(line.expandtabs(4)) for line in text.splitlines()]
    kept = lines[-SAMPLE_LINES:] if last else lines[:SAMPLE_LINES]
    return [line if cell_len(line) <= width else set_cell_size(line, width - 1) + "…" for line in kept]
