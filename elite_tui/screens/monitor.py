"""Monitor: one run, live or finished: its loss, its resources, its log, and the commands it takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widgets import Static

from elite_tui.actions import bindings_for, room_actions
from elite_tui.figures import (
    bytes_in_words,
    context_in_words,
    count_in_words,
    duration_in_words,
    number_in_words,
    printable,
)
from elite_tui.run_view import RunView
from elite_tui.screens.confirm import ConfirmScreen
from elite_tui.screens.room import RoomScreen
from elite_tui.widgets.chart import LineChart, Series
from elite_tui.widgets.gauge import bar
from elite_tui.widgets.log_pane import LogPane
from elite_tui.widgets.machine_gauges import MachineGauges

if TYPE_CHECKING:
    from collections.abc import Iterable

    from textual.binding import BindingType
    from textual.widget import Widget

STATE_MARKS = {
    "paused": ("Ⅱ", "$text-warning"),
    "stopping": ("■", "$text-warning"),
    "stopped": ("■", "$text-warning"),
    "completed": ("✓", "$text-success"),
    "failed": ("✗", "$text-error"),
}
"State → the sign and colour before it; every other state is a phase that is under way."

COMMAND_OF_ACTION = {
    "pause": "Pause",
    "resume": "Resume",
    "save_now": "SaveNow",
    "evaluate_now": "EvaluateNow",
    "stop": "Stop",
}


class MonitorScreen(RoomScreen):
    """The room of a run."""

    ROOM = "monitor"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings_for(room_actions(ROOM))]
    CSS_PATH = "monitor.tcss"

    def __init__(self) -> None:
        super().__init__()
        self._offered: tuple[object, ...] = ()
        "What decides which keys the footer offers: it is composed anew only when this changes."

    def compose_room(self) -> Iterable[Widget]:
        """Status, progress, chart beside figures, log."""
        yield Static(id="status", markup=False)
        yield Static(id="progress", markup=False)
        with Horizontal(id="upper"):
            yield LineChart("loss", id="loss", empty="the first value comes with the first step")
            with Vertical(id="side"):
                yield Static(id="figures", markup=False)
                yield MachineGauges(compact=True)
        yield LogPane(id="log")

    def on_mount(self) -> None:
        """The log has the focus: it is what scrolls."""
        super().on_mount()
        self.query_one(LogPane).focus()

    def show(self, what: str) -> None:
        """Draws the run, or the machine's levels."""
        if what in ("all", "snapshots"):
            self.query_one(MachineGauges).show(self.state)
        if what in ("all", "run"):
            run = self.state.run
            if run is None:
                self.query_one("#status", Static).update(self._no_run())
                return
            self.query_one("#status", Static).update(status_line(run))
            self.query_one("#progress", Static).update(progress_lines(run, max(20, self.size.width - 4)))
            self.query_one("#figures", Static).update(figures(run, short=self.has_class("-short")))
            self.query_one(LineChart).show(
                Series(name="train", points=run.losses),
                Series(name="held-out", points=run.held_out, style="$accent", marker="◆"),
            )
            self.query_one(LogPane).follow(run)
            offered = (run.ended, run.paused, tuple(run.pending.values()))
            if offered != self._offered:
                self._offered = offered
                self.refresh_bindings()

    def _no_run(self) -> Content:
        error = self.state.opening
        if error is None:
            return Content.styled("opening the run …", "$muted")
        return Content.assemble(("✗ ", "$text-error"), error.message, "\n  ", (error.remedy, "$muted"))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002
        """Only what the run can take now is offered."""
        run = self.state.run
        if action == "show_result":
            return run is not None and run.ended
        if action == "detach":
            return self.state.run_active
        if action not in COMMAND_OF_ACTION:
            return True
        if run is None or run.ended or COMMAND_OF_ACTION[action] in run.pending.values():
            return False
        if action in ("pause", "resume"):
            return run.paused is (action == "resume")
        return True

    def action_pause(self) -> None:
        """Sends Pause."""
        self.elite.send("Pause")

    def action_resume(self) -> None:
        """Sends Resume."""
        self.elite.send("Resume")

    def action_save_now(self) -> None:
        """Sends SaveNow."""
        self.elite.send("SaveNow")

    def action_evaluate_now(self) -> None:
        """Sends EvaluateNow."""
        self.elite.send("EvaluateNow")

    def action_stop(self) -> None:
        """Sends Stop, once it is confirmed."""

        def answered(answer: str | None) -> None:
            if answer == "stop":
                self.elite.send("Stop")

        self.app.push_screen(
            ConfirmScreen(
                "Stop this run?",
                "It ends after the present step and saves a checkpoint; `engine train --resume` goes on from there.",
                (("stop", "Stop and save"), ("cancel", "Keep training")),
                safe="cancel",
            ),
            answered,
        )

    def action_detach(self) -> None:
        """Leaves the app; the run goes on."""
        self.elite.leave("goes on")

    def action_show_result(self) -> None:
        """To the result."""
        self.elite.go("result")


def status_line(run: RunView) -> Content:
    """State, model and run in one line."""
    mark, style = STATE_MARKS.get(run.state, ("●", "$text-primary"))
    line = Content.styled(f"{mark} {run.state}", f"bold {style}")
    detail = printable(run.phase_detail)
    if detail and run.state == run.phase:
        line = line.append(Content.styled(f" {detail}", "$muted"))
    if run.started is not None:
        started = run.started
        line = line.append(
            f"   {printable(started.model)} · {context_in_words(started.context)} tokens · {printable(started.device)}"
        )
    return line.append(Content.styled(f"   {printable(run.run_id)}", "$muted"))


def progress_lines(run: RunView, width: int) -> Content:
    """How far the run is, and how far inside the present step or phase."""
    total, done = run.total_steps, run.done_steps
    eta = run.step.eta_seconds if run.step is not None else None
    if run.ended:
        elapsed = (run.updated_at or 0) - (run.started_at or 0)
        tail = f"in {duration_in_words(elapsed)}"
    else:
        tail = f"ETA {duration_in_words(eta)}"
    head = f"step {done:,}/{total:,}" if total else "step n/a"
    whole = _bar_line(head, done / total if total else None, tail, width)
    inner = run.progress
    if run.ended:
        return Content("\n").join([whole, _ended_line(run)])
    if inner is None:
        pending = ", ".join(sorted(run.pending.values()))
        waiting = f"waiting for the run to answer: {pending}" if pending else ""
        return Content("\n").join([whole, Content.styled(waiting, "$muted")])
    place = "".join(
        f" {name} {value}" for name, value in (("layer", inner.layer), ("tile", inner.tile)) if value is not None
    )
    share = inner.done / inner.total if inner.total else None
    return Content("\n").join(
        [
            whole,
            _bar_line(printable(inner.stage) + place, share, f"{inner.done:,}/{inner.total:,}", width, "$secondary"),
        ]
    )


def _ended_line(run: RunView) -> Content:
    if run.failed is not None:
        return Content.assemble(
            (f"{printable(run.failed.message)}", "$text-error"), (f"  {printable(run.failed.hint)}", "$muted")
        )
    return Content.styled("press enter for the result", "$muted")


def _bar_line(head: str, share: float | None, tail: str, width: int, style: str = "$primary") -> Content:
    head, tail = f"{head:<24} ", f"  {tail:>11}"
    room = max(4, width - len(head) - len(tail))
    return Content.assemble(head, Content.styled(bar(share, room), f"{style} on $surface"), tail)


def figures(run: RunView, *, short: bool) -> Content:
    """The latest values, one a line; where there is little height, those that the chart does not show."""
    step, latest = run.step, run.latest_evaluation
    before = run.first_evaluation
    rows = [
        ("tokens/s", count_in_words(step.tokens_per_second if step else None)),
        ("epoch", f"{step.epoch:.2f}" if step else "n/a"),
        ("perplexity", number_in_words(latest.perplexity if latest else None)),
        ("  before", number_in_words(before.perplexity if before else None)),
    ]
    if not short:
        rows += [
            ("rate", f"{step.lr:.2e}" if step else "n/a"),
            ("gradient", number_in_words(step.grad_norm if step else None, 3)),
            ("run's RAM", bytes_in_words(step.host_used if step else None)),
        ]
        if step is not None and step.gpu_peak is not None:
            rows.append(("GPU peak", bytes_in_words(step.gpu_peak)))
    saved = f"step {run.checkpoint.step:,}" if run.checkpoint else "not yet"
    if run.warnings or run.recoveries:
        # The log says what they are.
        saved += f"  ! {run.warnings + run.recoveries}"
    rows.append(("saved", saved))
    return Content("\n").join(Content.assemble((f"{name:<11}", "$muted"), value) for name, value in rows)
