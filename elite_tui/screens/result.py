"""Shows run results: metrics, cost, artifacts, next steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Digits, Static

from elite_tui.actions import bindings_for, screen_actions
from elite_tui.runs import result_panels
from elite_tui.runs.finish_line import finish_line, use_command
from elite_tui.runs.function_diffs import AT_ONCE, function_diffs
from elite_tui.screens.app_screen import AppScreen
from elite_tui.state_part import Parts, StatePart
from elite_tui.widgets.choice_bar import Choice, ChoiceBar
from elite_tui.widgets.text_block import TextBlock

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from textual.binding import BindingType
    from textual.widget import Widget

    from elite_tui.runs.report import RunReport, Sample
    from elite_tui.runs.view import RunView
    from elite_tui.screens.app_screen import Elite

DRAWN_FROM = frozenset({StatePart.RUN, StatePart.REPORT})
DO = (
    Choice(key="g", label="Try it", action="show_generate"),
    Choice(key="x", label="Export", action="export"),
    Choice(key="c", label="Copy command", action="copy_command"),
    Choice(key="f", label="More functions", action="more_functions"),
)
"What to do with a result; each can be clicked."


class ResultScreen(AppScreen):
    """Screen of a run's results."""

    ROOM = "result"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings_for(screen_actions(ROOM))]
    CSS_PATH = "result.tcss"

    def __init__(self, elite: Elite) -> None:
        super().__init__(elite)
        self._first = 0
        "The first function on screen."

    def compose_body(self) -> Iterable[Widget]:
        """Composes the verdict, the finish line, what to do with the result, functions, cost, places and commands."""
        with VerticalScroll(id="result", can_focus=True):
            yield TextBlock(id="verdict")
            yield TextBlock(id="finish-title", classes="section")
            with Horizontal(id="finish"):
                for name, label in (("before", "base model"), ("after", "fine-tuned")):
                    if name == "after":
                        yield TextBlock("\n──▶", id="arrow")
                    with Vertical(classes="figure"):
                        yield Digits(id=name)
                        yield Static(label, classes="muted", markup=False)
                yield TextBlock(id="change")
            yield ChoiceBar(id="do")
            yield TextBlock(id="use")
            yield TextBlock(id="names")
            yield TextBlock(id="compile-rate")
            yield Static(
                "Functions that it never saw, completed: - in the file only, + written instead",
                id="functions-title",
                classes="section",
                markup=False,
            )
            yield TextBlock(id="functions")
            with Horizontal(classes="pair"):
                with Vertical(classes="half"):
                    yield Static("What it cost", classes="section", markup=False)
                    yield TextBlock(id="foreseen")
                with Vertical(classes="half"):
                    yield Static("Where it is", classes="section", markup=False)
                    yield TextBlock(id="paths")
            yield Static("Commands", classes="section", markup=False)
            yield TextBlock(id="next")

    def enter(self) -> None:
        """Focuses the page, which scrolls; reads the run's folder once the run is known."""
        self.query_one("#result").focus()
        self.elite.run_desk.ask_report()

    def on_resize(self) -> None:
        """Fits bars and code to the new width."""
        self.call_after_refresh(self.show, {StatePart.RUN})

    def show(self, changed: Parts) -> None:
        """Draws the run's results."""
        run, path, report = self.state.run, self.state.run_path, self.state.report.value
        if changed.isdisjoint(DRAWN_FROM) or run is None or path is None:
            return
        width = max(40, self.size.width - 6)
        half = width // 2 - 2 if self.has_class("-wide") or self.has_class("-medium") else width
        self.refresh_bindings()
        self._show_finish_line(run, report)
        self._show_functions(width)
        command, what = use_command(run, report)
        use = [Content.assemble((command, "bold"), (f"  {what}", "$muted"))] if command else []
        steps = run.finished.steps if run.finished else None
        parts = {
            "verdict": [result_panels.verdict(run)],
            "use": use,
            "names": result_panels.names_guessed(report, width, steps),
            "compile-rate": result_panels.compile_rate(report, width, steps),
            "foreseen": result_panels.foreseen(run, report),
            "next": result_panels.next_steps(run, report),
            "paths": result_panels.places(run, report, path, half),
        }
        for name, lines in parts.items():
            self._show_lines(name, lines)

    def _show_lines(self, name: str, lines: Sequence[Content]) -> None:
        widget = self.query_one(f"#{name}", TextBlock)
        widget.display = bool(lines)
        widget.update(Content("\n").join(lines))

    def _show_finish_line(self, run: RunView, report: RunReport | None) -> None:
        line = finish_line(run, report)
        for name in ("arrow", "before", "after"):
            self.query_one(f"#{name}").display = line is not None
        for figure in self.query(".figure"):
            figure.display = line is not None
        title = "Perplexity" if line is None else f"Perplexity of {line.sample}"
        self.query_one("#finish-title", TextBlock).update(
            Content.assemble(title, ("  lower is better", "not bold $muted") if line is not None else "")
        )
        change = self.query_one("#change", TextBlock)
        if line is None:
            change.update(result_panels.not_scored(run))
            return
        self.query_one("#before", Digits).update(line.before)
        self.query_one("#after", Digits).update(line.after)
        change.update(result_panels.change_words(line))

    def _show_functions(self, width: int) -> None:
        samples = self._samples
        self._first = self._first if self._first < len(samples) else 0
        lines = function_diffs(samples, self._first, width)
        self.query_one("#functions-title").display = bool(lines)
        self._show_lines("functions", lines)
        able = [action for action in DO if self.check_action(action.action, ())]
        self.query_one("#do", ChoiceBar).show(able)

    @property
    def _samples(self) -> Sequence[Sample]:
        report = self.state.report.value
        return report.samples if report is not None else ()

    def action_show_monitor(self) -> None:
        """Returns to the charts."""
        self.elite.go("monitor")

    def action_export(self) -> None:
        """Opens the export dialog."""
        if self.state.run_path is not None:
            from elite_tui.screens.export import ExportScreen

            self.app.push_screen(ExportScreen(self.state.run_path))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002
        """Allows trying and exporting only a run with a result, and resuming one without its last step."""
        run = self.state.run
        adapter = run.finished.adapter if run is not None and run.finished is not None else None
        if action == "resume":
            access = self.state.open_runs.current.access if self.state.open_runs.current is not None else None
            resumable = run is not None and run.resumable and not self.state.launching
            return resumable and not (access is not None and access.refusal)
        if action == "copy_command":
            return run is not None and bool(use_command(run, self.state.report.value)[0])
        if action == "more_functions":
            return len(self._samples) > AT_ONCE
        return adapter is not None if action in ("show_generate", "export") else True

    def action_resume(self) -> None:
        """Resumes the run from its last checkpoint; its monitor shows how it goes on."""
        if self.state.run_path is not None:
            self.elite.run_desk.resume(self.state.run_path)

    def action_copy_command(self) -> None:
        """Copies the command that puts the result to use, by OSC 52, which works over SSH too."""
        if self.state.run is not None:
            command, _ = use_command(self.state.run, self.state.report.value)
            self.app.copy_to_clipboard(command)
            self.app.notify(f"{command}\nwhere the terminal does not take it, type it", title="copied", markup=False)

    def action_more_functions(self) -> None:
        """Shows the next functions, after the last ones the first again."""
        self._first += AT_ONCE
        self.show({StatePart.REPORT})
        title = self.query_one("#functions-title")
        self.query_one("#result").scroll_to_widget(title, top=True, animate=False)

    def action_show_generate(self) -> None:
        """Switches to the generate screen."""
        self.elite.go("generate")

    def action_new_run(self) -> None:
        """Returns to the first screen."""
        self.elite.begin_wizard()
