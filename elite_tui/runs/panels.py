"""Formats a run for the monitor: state, progress, latest figures. Pure functions."""

from __future__ import annotations

import functools
import math
import textwrap
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from textual.content import Content

from elite_tui.format.figures import (
    NOT_AVAILABLE,
    bytes_in_words,
    bytes_of_total,
    context_in_words,
    count_in_words,
    duration_in_words,
    number_in_words,
    percent_in_words,
    printable,
    rate_in_words,
)
from elite_tui.runs.curves import planned_gpu, planned_host
from elite_tui.runs.remaining import remaining, total_steps

if TYPE_CHECKING:
    from elite_tui.runs.eta import Estimate
    from elite_tui.runs.open_runs import OpenRun
    from elite_tui.runs.view import RunView
    from elite_tui.widgets.machine_gauges import Level
    from engine.evaluation.projection import Projection
    from engine.protocol.events import StepProgress

STATE_MARKS = {
    "paused": ("Ⅱ", "$text-warning"),
    "stopping": ("■", "$text-warning"),
    "stopped": ("■", "$text-warning"),
    "completed": ("✓", "$text-success"),
    "failed": ("✗", "$text-error"),
}
"State → sign and colour; every other state is an active phase."

STREAMED_STAGES = ("forward", "loss", "backward", "optimiser")
SILENT_AFTER = 30.0
"""Seconds without an event after which the monitor shows the duration of the silence."""
LONGEST_CLOCK = 1e9
"""Seconds, some 30 years, beyond which an ETA is no time of a calendar."""
LINES_OF_TROUBLE = 2
"""Lines of an error message, and of its remedy, above the charts; the event list shows them in full."""
HEAD = 27
"""Cells before a bar."""


def state_mark(view: RunView) -> tuple[str, str]:
    """Returns the sign and colour of the run's state."""
    return STATE_MARKS.get(view.state, ("●", "$text-primary"))


def status_line(run: OpenRun) -> Content:
    """Formats state, model and run in one line."""
    view = run.view
    mark, style = state_mark(view)
    line = Content.styled(f"{mark} {view.state}", f"bold {style}")
    detail = printable(view.phase_detail)
    if view.started is not None:
        started = view.started
        line = line.append(
            f"   {printable(started.model)} · {context_in_words(started.context)} tokens · {printable(started.device)}"
        )
    line = line.append(Content.styled(f"   {printable(view.run_id)}", "$muted"))
    if detail and view.state == view.phase:
        line = line.append(Content.styled(f"   {detail}", "$muted"))
    return line


def notice_line(run: OpenRun, now: float) -> Content | None:
    """Formats warnings about the page's data and controls; None if there are none."""
    view = run.view
    notes = []
    if run.filling is not None:
        notes.append(f"reading the journal: {run.share:.0%}; until then only its first and latest events are drawn")
    if run.problem:
        notes.append(f"! the journal cannot be read at present: {printable(run.problem)}")
    if not view.ended and run.access is not None and run.access.refusal:
        notes.append(f"⊘ read-only: {printable(run.access.refusal)}")
    silent = now - view.updated_at if view.updated_at is not None else 0.0
    if not view.ended and not view.paused and silent > SILENT_AFTER:
        notes.append(f"no news for {duration_in_words(silent - silent % 10)}")
    return Content.styled(" · ".join(notes), "$text-warning") if notes else None


def progress_lines(run: OpenRun, width: int, now: float | None = None) -> list[Content]:
    """Formats the progress of the run, and of the current step or phase.

    Args:
        run: The run.
        width: Available columns.
        now: The training machine's clock; None where it is not known: then that of the latest event.
    """
    view = run.view
    now = max(now or 0.0, view.updated_at or 0.0)
    total, done = total_steps(view, run.planned), view.done_steps
    head = f"step {done:,}/{total:,}" if total else "step n/a"
    share = done / total if total else None
    if view.ended:
        elapsed = (view.updated_at or 0) - (view.started_at or 0)
        if view.finished is not None:
            elapsed = view.finished.seconds  # as the result and the report say it
        whole = _bar_line(head, share, (f"in {duration_in_words(elapsed)}",), width, "$primary")
        return [whole, *_ended_lines(view, width)]
    left = remaining(view, run.planned, now if not view.paused else None)
    if left is not None and left.share is not None:
        share = left.share
    whole = _bar_line(head, share, _time_left(view, left, now), width, "$primary")
    if view.progress is not None:
        return [whole, _inner_line(view, view.progress, width)]
    pending = ", ".join(sorted(view.pending.values()))
    if pending:
        return [whole, Content.styled(f"waiting for the run to answer: {pending}", "$muted")]
    return [whole, _phase_line(run, now, width)]


def _phase_line(run: OpenRun, now: float, width: int) -> Content:
    """Formats the time spent in a phase that counts nothing yet, beside the time that the plan promises."""
    view = run.view
    began = view.phase_began if view.phase_began is not None else view.started_at
    if began is None or view.paused or view.phase == "training":
        return Content("")
    spent = max(0.0, now - began)
    promised = run.planned.phases.get(view.phase) if run.planned is not None else None
    words = f"{duration_in_words(spent)}" + (f" of about {duration_in_words(promised)}" if promised else " so far")
    tails = [words]
    if view.phase_detail and view.part_began is not None and view.part_began > began:
        part = f"{printable(view.phase_detail)} {duration_in_words(max(0.0, now - view.part_began))}"
        tails = [f"{part} · {words}", part, words]
    return _bar_line(view.phase, min(1.0, spent / promised) if promised else None, tails, width, "$secondary")


def _time_left(view: RunView, left: Estimate | None, now: float) -> Sequence[str]:
    """Returns the remaining time and its basis in words, from long to short."""
    if left is None:
        return ("ETA n/a", "n/a")
    eta = f"ETA {duration_in_words(left.seconds)}"
    if left.seconds > LONGEST_CLOCK:
        return (f"{eta} · {left.basis}", eta)
    if view.paused:
        return (f"{eta} once it goes on · {left.basis}", f"{eta} once it goes on", eta)
    clock = time.strftime("%H:%M", time.localtime(now + left.seconds))
    return (f"{eta}, at {clock} · {left.basis}", f"{eta} · {left.basis}", eta)


def _inner_line(view: RunView, inner: StepProgress, width: int) -> Content:
    place = "".join(
        f" {name} {value}" for name, value in (("layer", inner.layer), ("tile", inner.tile)) if value is not None
    )
    share = inner.done / inner.total if inner.total else None
    counted = f"{inner.done:,}/{inner.total:,}"
    tails = [counted]
    each, began = view.eta.step_seconds, view.eta.step_began
    if inner.stage in STREAMED_STAGES and began is not None and view.updated_at is not None:
        spent = duration_in_words(view.updated_at - began)
        tails.insert(0, f"{counted} · {spent}" + (f" of about {duration_in_words(each)}" if each else " so far"))
        stages = " ".join(
            f"{stage} {'●' if stage == inner.stage else '✓' if stage in view.stages else '○'}"
            for stage in STREAMED_STAGES
        )
        tails.insert(0, f"{tails[0]} · {stages}")
    return _bar_line(printable(inner.stage) + place, share, tails, width, "$secondary")


def _ended_lines(view: RunView, width: int) -> list[Content]:
    if view.failed is None:
        return [Content.styled("press enter, or click here, for the result", "$muted")]
    message, hint = printable(view.failed.message), printable(view.failed.hint)
    return [
        *(Content.styled(line, "$text-error") for line in textwrap.wrap(message, width)[:LINES_OF_TROUBLE]),
        *(Content.styled(line, "$muted") for line in textwrap.wrap(f"→ {hint}", width)[:LINES_OF_TROUBLE] if hint),
    ]


def _bar_line(head: str, share: float | None, tails: Sequence[str], width: int, style: str) -> Content:
    """Formats head, bar, share and the longest tail that fits; bars of several lines are aligned."""
    cells = max(8, min(60, (width - HEAD) * 2 // 5 - 8))
    free = width - HEAD - cells - len("  100%   ")
    tail = next((tail for tail in tails if len(tail) <= free), tails[-1])
    done = round(cells * min(1.0, max(0.0, share))) if share is not None else 0
    return Content.assemble(
        f"{head[: HEAD - 1]:<{HEAD}}",
        ("━" * done, style),
        (("─" if share is not None else "┄") * (cells - done), "$faint"),
        f"  {percent_in_words(share) if share is not None else '':>4}",
        (f"   {tail}", "$muted"),
    )


Figure = tuple[int, str, tuple[str, ...]]
"""Rank (1 is most important), name, and the value in words, from long to short."""
NAME = 12
"""Cells before a figure."""


def figures(run: OpenRun, size: tuple[int, int], machine: Sequence[Level] = ()) -> list[Content]:
    """Formats the latest values in groups, one per line; with few rows, the most important ones.

    Args:
        run: The run.
        size: Available columns and rows.
        machine: Levels of this machine, unless they are shown beside the figures.
    """
    width, rows = size
    groups = [_work(run), _quality(run), _optimiser(run), _memory(run), _ranks(run), _events(run), _machine(machine)]
    if run.view.step is None and not run.view.ended:
        # What a step would tell is left out, for what is known: the plan and the machine.
        groups = [[row for row in group if row[2] != (NOT_AVAILABLE,)] for group in groups]
    wanted = [row for group in groups for row in group]
    spaced = len(wanted) + len(groups) - 1 <= rows
    if len(wanted) > rows:
        wanted = sorted(wanted, key=lambda row: row[0])[: max(0, rows)]
    lines: list[Content] = []
    for group in groups:
        shown = [row for row in group if row in wanted]
        if spaced and lines and shown:
            lines.append(Content(""))
        for _, name, values in shown:
            value = next((value for value in values if NAME + len(value) <= width), values[-1])
            lines.append(Content.assemble((f"{name:<{NAME}}", "$muted"), value))
    return lines


def _work(run: OpenRun) -> list[Figure]:
    step, planned = run.view.step, run.planned
    if step is None and planned is not None and planned.step_seconds:
        return [(1, "step time", (f"{duration_in_words(planned.step_seconds)} planned",))]
    return [
        (1, "tokens/s", (count_in_words(step.tokens_per_second if step else None),)),
        (4, "step time", (duration_in_words(_step_seconds(run.view)),)),
        (2, "epoch", (f"{step.epoch:.2f}" if step else NOT_AVAILABLE,)),
        (5, "tokens", (count_in_words(_tokens(run.view)),)),
    ]


def _step_seconds(view: RunView) -> float | None:
    """Returns the mean of the latest steps; once a run has ended, that of all, as its result says it."""
    whole = view.history.steps.mean("seconds") if view.ended else None
    return whole if whole is not None else view.eta.step_seconds


def _tokens(view: RunView) -> float | None:
    if view.finished is not None and view.finished.tokens:
        return view.finished.tokens
    return view.history.tokens if view.step else None


def _quality(run: OpenRun) -> list[Figure]:
    latest, before = run.view.latest_evaluation, run.view.first_evaluation
    now = number_in_words(latest.perplexity if latest else None)
    if latest and before and latest is not before and latest.perplexity is not None and before.perplexity:
        from engine.evaluation.words import too_few_updates

        change = latest.perplexity / before.perplexity - 1
        # An arrow after a few updates would be a verdict.
        sign = "=" if too_few_updates(run.view.done_steps) else "▼" if change < 0 else "▲"
        now += f"  {sign} {abs(change) if sign != '=' else change:.0%}"
    rows: list[Figure] = [
        (1, "perplexity", (now,)),
        (2, "  before", (number_in_words(before.perplexity if before else None),)),
    ]
    if projected := projected_perplexity(run.view):
        rows.append((3, "  at the end", projected))
    return rows


def _optimiser(run: OpenRun) -> list[Figure]:
    step = run.view.step
    return [
        (5, "rate", (rate_in_words(step.lr if step else None),)),
        (4, "gradient", (number_in_words(step.grad_norm if step else None, 3),)),
    ]


def _memory(run: OpenRun) -> list[Figure]:
    step = run.view.step
    rows: list[Figure] = []
    if step is None and not run.view.ended:
        planned = (("GPU peak", 2, planned_gpu(run)), ("RAM", 3, planned_host(run)))
        return [(rank, name, _planned_words(size)) for name, rank, size in planned if size]
    done = run.view.finished
    gpu, host, name = step.gpu_peak if step else None, step.host_used if step else None, "RAM"
    if done is not None:
        gpu = done.gpu_peak if done.gpu_peak is not None else gpu
        host, name = (done.host_peak, "RAM peak") if done.host_peak is not None else (host, name)
    if gpu is not None:
        rows.append((2, "GPU peak", _of_plan(gpu, planned_gpu(run))))
    rows.append((3, name, _of_plan(host, planned_host(run))))
    return rows


def _planned_words(size: float) -> tuple[str, ...]:
    return f"{bytes_in_words(size)} planned", f"{bytes_in_words(size)} plan"


def _ranks(run: OpenRun) -> list[Figure]:
    """Returns a figure per rank of a multi-process run."""
    rows: list[Figure] = []
    for number, rank in sorted(run.view.ranks.items()):
        held = bytes_in_words(rank.gpu_allocated if rank.gpu_allocated is not None else rank.host_used)
        short = f"{duration_in_words(rank.seconds)} · {held}"
        waited = f"{short} · waited {duration_in_words(rank.waited_seconds)}"
        rows.append((3, f"rank {number}", (f"{waited} · {printable(rank.host)}", waited, short)))
    return rows


def _of_plan(used: int | None, planned: float | None) -> tuple[str, ...]:
    if used is None or planned is None:
        return (bytes_in_words(used),)
    return f"{bytes_in_words(used)} of {bytes_in_words(planned)} planned", bytes_of_total(used, planned)


def _events(run: OpenRun) -> list[Figure]:
    view = run.view
    rows: list[Figure] = [(2, "saved", (f"step {view.checkpoint.step:,}" if view.checkpoint else "not yet",))]
    if view.warnings or view.recoveries:
        # The event list shows the texts and remedies.
        counts = ((view.warnings, "!", "warning", "warnings"), (view.recoveries, "↻", "recovery", "recoveries"))
        words = ", ".join(f"{sign} {n} {one if n == 1 else many}" for n, sign, one, many in counts if n)
        rows.append((3, "events", (words, "  ".join(f"{sign} {n}" for n, sign, _, _ in counts if n))))
    return rows


def _machine(levels: Sequence[Level]) -> list[Figure]:
    return [
        (2, level.label, (f"{percent_in_words(level.share)}  {level.figures}", level.figures))
        for level in levels
        if level.share is not None
    ]


def projected_perplexity(view: RunView) -> tuple[str, ...]:
    """Returns the projected final perplexity in words, from long to short; empty with too few evaluations."""
    step = view.step
    if view.ended or step is None or not step.step:
        return ()
    scores = view.history.held_out
    points = tuple(
        (tokens, loss)
        for tokens, loss in zip(scores["tokens"], scores["loss"], strict=True)
        if math.isfinite(tokens) and math.isfinite(loss)
    )
    # Rounded tokens of full steps, so that each step hits the cache.
    a_step = view.history.tokens / step.step
    found = _project(points, float(f"{a_step * step.total_steps:.3g}"))
    if found is None:
        return ()
    middle, low, high = (number_in_words(math.exp(min(loss, 50)), 3) for loss in (found.loss, found.low, found.high))
    return f"{middle} ({low} to {high}) projected", f"{middle} projected"


@functools.lru_cache(maxsize=32)
def _project(points: tuple[tuple[float, float], ...], tokens: float) -> Projection | None:
    from engine.evaluation.projection import project

    return project(points, tokens)
