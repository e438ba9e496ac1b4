"""Result: what a run achieved, where it is, and what to do with it."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, ClassVar

from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from elite_tui.actions import bindings_for, room_actions
from elite_tui.figures import (
    NOT_AVAILABLE,
    bytes_in_words,
    count_in_words,
    duration_in_words,
    number_in_words,
    printable,
)
from elite_tui.screens.room import RoomScreen
from elite_tui.widgets.gauge import bar

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from textual.binding import BindingType
    from textual.widget import Widget

    from elite_tui.run_view import RunView

BAR_WIDTH = 40


class ResultScreen(RoomScreen):
    """The room of a run's end."""

    ROOM = "result"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings_for(room_actions(ROOM))]
    CSS_PATH = "result.tcss"

    def compose_room(self) -> Iterable[Widget]:
        """Verdict, perplexity, paths, next steps."""
        with VerticalScroll(id="result", can_focus=True):
            yield Static(id="verdict", markup=False)
            yield Static(id="perplexity", markup=False)
            yield Static("Where it is", classes="section", markup=False)
            yield Static(id="paths", markup=False)
            yield Static("Next", classes="section", markup=False)
            yield Static(id="next", markup=False)

    def on_mount(self) -> None:
        """The keys go to the page, which scrolls."""
        super().on_mount()
        self.query_one("#result").focus()

    def show(self, what: str) -> None:
        """Draws the run's end."""
        run, path = self.state.run, self.state.run_path
        if what not in ("all", "run") or run is None or path is None:
            return
        self.query_one("#verdict", Static).update(verdict(run))
        self.query_one("#perplexity", Static).update(perplexity(run))
        self.query_one("#paths", Static).update(paths(run, path))
        self.query_one("#next", Static).update(next_steps(run, path))

    def action_show_monitor(self) -> None:
        """Back to the charts."""
        self.elite.go("monitor")

    def action_new_run(self) -> None:
        """Back to the first room."""
        self.elite.begin_wizard()


def verdict(run: RunView) -> Content:
    """How the run ended, in one line or two."""
    if run.failed is not None:
        return Content.assemble(
            ("✗ failed  ", "$text-error bold"),
            printable(run.failed.message),
            "\n",
            (printable(run.failed.hint), "$text-accent"),
        )
    if run.finished is None:
        return Content.assemble(("● under way  ", "$text-primary bold"), "this page fills when the run ends")
    done = run.finished
    mark = (
        ("✓ completed  ", "$text-success bold") if done.status == "completed" else ("■ stopped  ", "$text-warning bold")
    )
    details = [
        f"{done.steps:,} steps",
        f"{count_in_words(done.tokens)} tokens",
        duration_in_words(done.seconds),
    ]
    if done.gpu_peak is not None:
        details.append(f"GPU peak {bytes_in_words(done.gpu_peak)}")
    details.append(f"RAM peak {bytes_in_words(done.host_peak)}")
    return Content.assemble(mark, " · ".join(details))


def perplexity(run: RunView) -> Content:
    """Held-out perplexity before and after, as bars against the larger one, and the change in words."""
    done = run.finished
    before = done.perplexity_before if done else None
    after = done.perplexity_after if done else None
    if before is None and run.first_evaluation is not None:
        before = run.first_evaluation.perplexity
    largest = max((value for value in (before, after) if value is not None), default=None)
    lines = [Content.styled("Perplexity on files that it never saw (lower is better)", "bold")]
    for name, value, style in (("before", before, "$secondary"), ("after", after, "$primary")):
        share = value / largest if value is not None and largest else None
        lines.append(
            Content.assemble(
                (f"{name:<8}", "$muted"),
                Content.styled(bar(share, BAR_WIDTH), f"{style} on $surface"),
                f"  {number_in_words(value)}",
            )
        )
    if before and after is not None:
        change = (after - before) / before
        words = (
            f"▼ {-change:.1%} lower: it predicts this code better than the base model"
            if change < 0
            else f"▲ {change:.1%} higher: it predicts this code no better; more epochs or a lower rate may help"
        )
        lines.append(Content.styled(words, "$text-success" if change < 0 else "$text-warning"))
    else:
        lines.append(Content.styled(f"change {NOT_AVAILABLE}: the run was not scored at both ends", "$muted"))
    return Content("\n").join(lines)


def paths(run: RunView, path: Path) -> Content:
    """The run directory and what is in it."""
    adapter = run.finished.adapter if run.finished is not None else None
    rows = [
        ("run", str(path)),
        ("adapter", str(path / adapter) if adapter else "none was saved"),
        ("checkpoint", f"{run.checkpoint.path} in the run's folder" if run.checkpoint else "none"),
        ("log", "engine.log in the run's folder"),
    ]
    return Content("\n").join(Content.assemble((f"{name:<12}", "$muted"), printable(value)) for name, value in rows)


def next_steps(run: RunView, path: Path) -> Content:
    """Commands that go on from here."""
    reference = shlex.quote(printable(run.run_id))
    steps = [(f"elite-tui monitor {reference}", "look at this run again")]
    if run.failed is not None or (run.finished is not None and run.finished.status == "stopped"):
        steps.append((f"engine train --resume {reference}", "go on from its last checkpoint"))
    if run.finished is not None and run.finished.adapter:
        steps.append(
            (f'PeftModel.from_pretrained(model, "{printable(str(path / run.finished.adapter))}")', "use the adapter")
        )
    steps.append(("n", "a new run, with everything as it was"))
    lines = [Content.assemble((command, "bold"), (f"\n    {what}", "$muted")) for command, what in steps]
    return Content("\n").join(lines)
