"""Shows run results: metrics, cost, artifacts, next steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Static

from elite_tui.actions import bindings_for, screen_actions
from elite_tui.runs import result_panels
from elite_tui.screens.app_screen import AppScreen
from elite_tui.state_part import Parts, StatePart

if TYPE_CHECKING:
    from collections.abc import Iterable

    from textual.binding import BindingType
    from textual.widget import Widget

DRAWN_FROM = frozenset({StatePart.RUN, StatePart.REPORT})


class ResultScreen(AppScreen):
    """Screen of a run's results."""

    ROOM = "result"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings_for(screen_actions(ROOM))]
    CSS_PATH = "result.tcss"

    def compose_body(self) -> Iterable[Widget]:
        """Composes the verdict, quality beside cost, places beside next steps, and samples."""
        with VerticalScroll(id="result", can_focus=True):
            yield Static(id="verdict", markup=False)
            with Horizontal(classes="pair"):
                with Vertical(classes="half"):
                    yield Static(id="perplexity", markup=False)
                    yield Static(id="compile-rate", markup=False)
                with Vertical(classes="half"):
                    yield Static("What it cost", classes="section", markup=False)
                    yield Static(id="foreseen", markup=False)
            with Horizontal(classes="pair"):
                with Vertical(classes="half"):
                    yield Static("Next", classes="section", markup=False)
                    yield Static(id="next", markup=False)
                with Vertical(classes="half"):
                    yield Static("Where it is", classes="section", markup=False)
                    yield Static(id="paths", markup=False)
            yield Static(
                "Before and after, on code that it never saw", id="samples-title", classes="section", markup=False
            )
            yield Static(id="samples", markup=False)

    def on_mount(self) -> None:
        """Focuses the page, which scrolls; reads the run's folder once the run is known."""
        super().on_mount()
        self.query_one("#result").focus()
        self.elite.run_desk.ask_report()

    def on_resize(self) -> None:
        """Fits the bars to the new width."""
        self.call_after_refresh(self.show, {StatePart.RUN})

    def show(self, changed: Parts) -> None:
        """Draws the run's results."""
        run, path, report = self.state.run, self.state.run_path, self.state.report.value
        if changed.isdisjoint(DRAWN_FROM) or run is None or path is None:
            return
        width = max(40, self.size.width - 6)
        half = width // 2 - 2 if self.has_class("-wide") or self.has_class("-medium") else width
        self.refresh_bindings()
        samples = result_panels.samples(report, width)
        self.query_one("#samples-title").display = bool(samples)
        parts = {
            "verdict": [result_panels.verdict(run)],
            "perplexity": result_panels.perplexity(run, report, half),
            "compile-rate": result_panels.compile_rate(report, half),
            "foreseen": result_panels.foreseen(run, report),
            "next": result_panels.next_steps(run, report),
            "paths": result_panels.places(run, report, path, half),
            "samples": samples,
        }
        for name, lines in parts.items():
            widget = self.query_one(f"#{name}", Static)
            widget.display = bool(lines)
            widget.update(Content("\n").join(lines))

    def action_show_monitor(self) -> None:
        """Returns to the charts."""
        self.elite.go("monitor")

    def action_export(self) -> None:
        """Opens the export dialog."""
        if self.state.run_path is not None:
            from elite_tui.screens.export import ExportScreen

            self.app.push_screen(ExportScreen(self.state.run_path))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002
        """Allows trying and exporting only a run with a result."""
        run = self.state.run
        adapter = run.finished.adapter if run is not None and run.finished is not None else None
        return adapter is not None if action in ("show_generate", "export") else True

    def action_show_generate(self) -> None:
        """Switches to the generate screen."""
        self.elite.go("generate")

    def action_new_run(self) -> None:
        """Returns to the first screen."""
        self.elite.begin_wizard()
