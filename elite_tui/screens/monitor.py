"""Monitors live or finished runs: curves, resources, events, log, and commands."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.containers import Grid, Horizontal, Vertical
from textual.content import Content
from textual.events import Click
from textual.widgets import Input

from elite_tui.actions import bindings_for, screen_actions
from elite_tui.runs.curves import CHARTS, RunCurves
from elite_tui.runs.panels import figures, notice_line, progress_lines, state_mark, status_line
from elite_tui.screens.chart_screen import ChartScreen
from elite_tui.screens.run_commands import RunCommands
from elite_tui.widgets.chart import LineChart
from elite_tui.widgets.choice_bar import Choice, ChoiceBar
from elite_tui.widgets.diff_widget import Fitted, Lines
from elite_tui.widgets.event_list import EventList
from elite_tui.widgets.log_pane import LEVELS, LogPane
from elite_tui.widgets.machine_gauges import Level, MachineGauges, levels

if TYPE_CHECKING:
    from collections.abc import Iterable

    from textual.binding import BindingType
    from textual.widget import Widget

    from elite_tui.runs.open_runs import OpenRun
    from elite_tui.screens.app_screen import Elite
from elite_tui.state_part import Parts, StatePart
from elite_tui.widgets.line_input import LineInput

SMALL_CHARTS = 4
"Small charts beneath the large one, if they fit."


class MonitorScreen(RunCommands, ChartScreen):
    """Screen of a run."""

    ROOM = "monitor"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings_for(screen_actions(ROOM))]
    CSS_PATH = "monitor.tcss"

    def __init__(self, elite: Elite) -> None:
        super().__init__(elite)
        self._chart = CHARTS[0].name
        self._curves: dict[str, RunCurves] = {}
        self._least = LEVELS[0]
        self._drawn: tuple[object, ...] = ()
        "Inputs of the drawn charts; progress inside a step changes none of them."

    def compose_body(self) -> Iterable[Widget]:
        """Composes tabs, status, progress, charts beside figures, log beside events."""
        yield ChoiceBar(id="run-tabs")
        yield Lines(id="status")
        yield Lines(id="notice")
        yield Lines(id="progress")
        yield ChoiceBar(id="chart-tabs")
        with Horizontal(id="upper"):
            with Vertical(id="plots"):
                yield LineChart(id="chart")
                with Grid(id="grid"):
                    for kind in CHARTS:
                        yield LineChart(id=f"grid-{kind.name}")
                with Horizontal(id="small-charts"):
                    for index in range(SMALL_CHARTS):
                        yield LineChart(id=f"small-{index}")
            with Vertical(id="side"):
                yield Fitted(id="figures")
                yield MachineGauges(compact=True)
        with Horizontal(id="lower"):
            with Vertical(id="log-box"):
                yield ChoiceBar(id="log-tabs")
                yield LogPane(id="log")
            with Vertical(id="event-box"):
                yield ChoiceBar(id="event-tabs")
                yield EventList(id="events")
        yield LineInput(id="search", placeholder="show only lines that hold … (esc shows all)", compact=True)

    def enter(self) -> None:
        """Focuses the log, which scrolls."""
        self.query_one(LogPane).focus()

    def on_resize(self) -> None:
        """Lays out for the new size."""
        self.call_after_refresh(self.show, {StatePart.RUN})

    # --- drawing -------------------------------------------------------------------------------------------

    def show(self, changed: Parts) -> None:
        """Draws the run, or the machine's levels."""
        run = self.state.open_runs.current
        if StatePart.SNAPSHOTS in changed:
            self._show_machine(run)
            if run is not None and StatePart.RUN not in changed:
                self._show_time(run)  # passes without news too
        if StatePart.RUN not in changed:
            return
        if run is None:
            self.query_one("#status", Lines).show(self._no_run())
            return
        self.query_one("#status", Lines).show([status_line(run)])
        self._show_time(run)
        levels_shown = self._levels(run)
        self.query_one("#figures", Fitted).show(lambda *size: figures(run, size, levels_shown))
        self._show_tabs(run)
        history = run.view.history
        curves = (
            run.key,
            id(history),
            history.steps.version,
            history.held_out.version,
            run.view.event_count,
            run.planned,
            self.size,
        )
        if curves != self._drawn:
            self._drawn = curves
            self.draw_charts()
        self.query_one(LogPane).follow(run.view)
        self.query_one(EventList).follow(run.view)
        self._show_machine(run)
        self.offer(run)

    def _show_time(self, run: OpenRun) -> None:
        """Draws what changes with the clock: warnings about silence, progress and remaining time."""
        now = self.state.clock()
        notice = notice_line(run, now)
        self.query_one("#notice").display = notice is not None
        self.query_one("#notice", Lines).show([notice] if notice is not None else [])
        here = run.access is None or run.access.here
        progress = progress_lines(run, max(20, self.size.width - 4), now if here else None)
        self.query_one("#progress").styles.height = len(progress)
        self.query_one("#progress", Lines).show(progress)

    def _shows_machine(self, run: OpenRun | None) -> bool:
        """Returns whether to show this machine's levels: not for a run that has ended or is elsewhere."""
        return run is not None and not run.view.ended and (run.access is None or run.access.here)

    def _levels(self, run: OpenRun) -> list[Level]:
        """Returns this machine's levels for the figures if the gauges do not fit."""
        if not self._shows_machine(run) or not self.has_class("-short"):
            return []
        # Before the first step the figures have room for all that is known: the machine.
        shown = ("VRAM", "GPU") if run.view.step is not None else ("VRAM", "GPU", "RAM", "CPU")
        return [level for level in levels(self.state.snapshots) if level.label.startswith(shown)]

    def _show_machine(self, run: OpenRun | None) -> None:
        gauges = self.query_one(MachineGauges)
        gauges.display = self._shows_machine(run) and not self.has_class("-short")
        if gauges.display:
            gauges.show(self.state.snapshots)

    def _show_tabs(self, run: OpenRun) -> None:
        runs = self.state.open_runs
        tabs = self.query_one("#run-tabs", ChoiceBar)
        tabs.display = len(runs) > 1
        tabs.show(
            [
                Choice(label=f"{state_mark(one.view)[0]} {one.title}", action=f"show_run({index})", chosen=one is run)
                for index, one in enumerate(runs)
            ],
            [
                Choice(key=",", label="previous", action="previous_run"),
                Choice(key=".", label="next", action="next_run"),
            ],
        )
        self._show_pane_tabs(run)

    def _show_pane_tabs(self, run: OpenRun) -> None:
        """Draws the tabs above log and events; if only one is on screen, each also names the other."""
        pane, view = self.query_one(LogPane), run.view
        apart = self.has_class("-wide")
        told = sum(1 for one in view.events if one.remedy)
        counted = f"Events {view.event_count:,}" + (f" · ! {told}" if told else "")
        found = f"“{pane.highlight}”: {pane.shown:,} of {len(view.log):,} lines" if pane.highlight else "search"
        level = "all" if self._least == LEVELS[0] else f"{self._least} and above"
        log = Choice(key="l", label="Log", action="toggle_pane", chosen=True)
        events = Choice(key="l", label=counted, action="toggle_pane", chosen=True)
        self.query_one("#log-tabs", ChoiceBar).show(
            [log] if apart else [log, replace(events, key="", chosen=False)],
            [Choice(key="/", label=found, action="search"), Choice(key="v", label=level, action="level")],
        )
        self.query_one("#event-tabs", ChoiceBar).show(
            [events] if apart else [replace(log, key="", chosen=False), events],
        )

    def draw_charts(self) -> None:
        """Draws the chosen chart, and the others small if they fit."""
        run = self.state.open_runs.current
        if run is None:
            return
        curves = self._curves.setdefault(run.key, RunCurves())
        if self.has_class("-grid"):
            for kind in CHARTS:
                self.query_one(f"#grid-{kind.name}", LineChart).show(curves.picture(kind.name, run, self.look))
        else:
            self.query_one("#chart", LineChart).show(curves.picture(self._chart, run, self.look))
        if self.query_one("#small-charts").display:
            memory = "gpu" if run.view.step is not None and run.view.step.gpu_peak is not None else "ram"
            others = [name for name in ("loss", "rate", "gradient", "speed", memory) if name != self._chart]
            for index, name in enumerate(others[:SMALL_CHARTS]):
                self.query_one(f"#small-{index}", LineChart).show(curves.picture(name, run, self.look))
        self.query_one("#chart-tabs", ChoiceBar).show(
            [
                Choice(
                    key=kind.key,
                    label=kind.title,
                    action=f"show_{kind.name}",
                    chosen=kind.name == self._chart and not self.has_class("-grid"),
                )
                for kind in CHARTS
            ]
            + [Choice(key="g", label="All", action="toggle_grid", chosen=self.has_class("-grid"))],
            self.switches(),
        )

    def _no_run(self) -> list[Content]:
        error = self.state.opening
        if error is None:
            return [Content.styled("opening the run …", "$muted")]
        return [Content.assemble(("✗ ", "$text-error"), error.message, (f"; {error.remedy}", "$muted"))]

    # --- views ---------------------------------------------------------------------------------------------

    def action_next_run(self) -> None:
        """Shows the run in the tab to the right."""
        self.elite.run_desk.step(1)

    def action_previous_run(self) -> None:
        """Shows the run in the tab to the left."""
        self.elite.run_desk.step(-1)

    def action_close_run(self) -> None:
        """Closes the tab; the run continues."""
        self.elite.run_desk.close()

    def action_show_result(self) -> None:
        """Switches to the result."""
        self.elite.go("result")

    def action_show_run(self, index: int) -> None:
        """Shows the run of a tab."""
        self.elite.run_desk.show(index)

    def action_show_loss(self) -> None:
        """Charts training and held-out loss."""
        self._show_chart("loss")

    def action_show_rate(self) -> None:
        """Charts the learning rate."""
        self._show_chart("rate")

    def action_show_gradient(self) -> None:
        """Charts the gradient norm."""
        self._show_chart("gradient")

    def action_show_speed(self) -> None:
        """Charts tokens per second."""
        self._show_chart("speed")

    def action_show_gpu(self) -> None:
        """Charts GPU memory against the plan."""
        self._show_chart("gpu")

    def action_show_ram(self) -> None:
        """Charts RAM against the plan."""
        self._show_chart("ram")

    def action_toggle_grid(self) -> None:
        """Switches between one large chart and all of them."""
        self.toggle_class("-grid")
        self.call_after_refresh(self.draw_charts)

    def _leave_grid(self) -> None:
        """Shows the log again, which the grid of charts hides."""
        if self.has_class("-grid"):
            self.remove_class("-grid")
            self.call_after_refresh(self.draw_charts)

    def _show_chart(self, name: str) -> None:
        self.remove_class("-grid")
        self._chart = name
        self.draw_charts()

    def action_toggle_pane(self) -> None:
        """Switches between log and events; if both are on screen, moves the focus."""
        self._leave_grid()
        to_events = isinstance(self.focused, LogPane)
        self.set_class(to_events, "-events")
        self.query_one("#events" if to_events else "#log").focus()
        self.show({StatePart.RUN})

    def action_search(self) -> None:
        """Opens the log search."""
        self._leave_grid()
        self.remove_class("-events")
        self.query_one("#search").display = True
        self.query_one("#search").focus()

    def action_end_search(self) -> None:
        """Clears the search and shows the whole log."""
        search = self.query_one("#search", Input)
        search.value = ""
        search.display = False
        self.query_one(LogPane).focus()

    def action_level(self) -> None:
        """Raises the minimum log level; after errors, shows all lines."""
        self._leave_grid()
        self._least = LEVELS[(LEVELS.index(self._least) + 1) % len(LEVELS)]
        self._filter_log()

    @on(Click, "#progress")
    def _progress_clicked(self) -> None:
        """Opens the result of a run that has ended, as the line says."""
        if self.check_action("show_result", ()):
            self.action_show_result()

    @on(Input.Changed, "#search")
    def _search_typed(self) -> None:
        self._filter_log()

    @on(Input.Submitted, "#search")
    def _search_done(self) -> None:
        """Returns the focus to the log; the search stays active."""
        search = self.query_one("#search", Input)
        search.display = False
        self.query_one(LogPane).focus()

    def _filter_log(self) -> None:
        self.query_one(LogPane).look_for(self.query_one("#search", Input).value, self._least)
        self.show({StatePart.RUN})
