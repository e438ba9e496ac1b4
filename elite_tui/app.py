"""Defines the App, which owns state and controllers, switches screens and folds messages into the state."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from rich.text import Text
from textual import on
from textual.app import App, SystemCommand
from textual.events import Key
from textual.screen import ModalScreen

from elite_tui import messages
from elite_tui.actions import ACTIONS, bindings_for, global_actions
from elite_tui.client.workers import EngineClient
from elite_tui.collector import examine_less
from elite_tui.format.figures import printable
from elite_tui.generation.controller import GenerationController
from elite_tui.messages import Changed
from elite_tui.redraw_throttle import RedrawThrottle
from elite_tui.runs.controller import RunController
from elite_tui.screen_list import SCREENS, neighbour
from elite_tui.screens.app_screen import Watching
from elite_tui.shutdown import farewell, watch_signals
from elite_tui.state_part import StatePart
from elite_tui.themes import DARK, THEMES, theme_after, theme_named
from elite_tui.wizard.controller import WizardController
from elite_tui.wizard.draft_controller import DraftController
from engine.runs.crash_log import record_crash
from engine.runs.desktop import has_desktop, terminal_sequence

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from textual.binding import BindingType
    from textual.dom import DOMNode
    from textual.events import Event
    from textual.screen import Screen

    from elite_tui.action import Action
    from elite_tui.client.calls import Engine
    from elite_tui.screens.app_screen import AppScreen, Elite
    from elite_tui.state import AppState
    from engine.runs.notices import Notice

THEME = "theme"
"Key under which the draft keeps the theme."
PACED = frozenset({StatePart.RUN, StatePart.SNAPSHOTS})
"Parts of the state that change by themselves; RedrawThrottle limits how often they are drawn."


def build_screen(name: str, elite: Elite) -> AppScreen:
    """Creates a screen; imports its module on first use."""
    module = importlib.import_module(f"elite_tui.screens.{name}")
    screen: AppScreen = getattr(module, SCREENS[name].screen)(elite)
    return screen


class EliteApp(App[str]):
    """The wizard and the run monitor. Returns a line to print after exit, or an empty one."""

    TITLE = "Elite TUI"
    CSS_PATH: ClassVar = [
        "app.tcss",
        "widgets/trail.tcss",
        "widgets/chart.tcss",
        "widgets/gauge.tcss",
        "widgets/field_row.tcss",
        "widgets/breakdown.tcss",
        "widgets/line_pane.tcss",
        "widgets/choice_bar.tcss",
        "widgets/machine_gauges.tcss",
    ]
    BINDINGS: ClassVar[list[BindingType]] = [*bindings_for(global_actions())]
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-medium"), (160, "-wide")]  # noqa: RUF012
    VERTICAL_BREAKPOINTS = [(0, "-short"), (32, "-tall")]  # noqa: RUF012

    def __init__(
        self, state: AppState, engine: Engine, *, first_screen: str = "project", runs: Sequence[str | None] = (None,)
    ) -> None:
        super().__init__()
        for theme in THEMES:
            self.register_theme(theme)
        self.theme = theme_named(state.draft.kept(THEME))
        self.state = state
        self.client = EngineClient(self, engine)
        self.controller = WizardController(self, state, self.client)
        self.drafting = DraftController(self, state, self.controller)
        self.run_desk = RunController(self, state, self.client)
        self.generation_desk = GenerationController(self, state.generation, engine)
        self._throttle = RedrawThrottle(self, self._draw)
        self._first_screen = first_screen
        self._runs = runs
        "References of the runs to open if the first screen is the monitor; None is the newest."
        self._screen_name = first_screen
        self._behind: str | None = None
        "Screen from which the list of runs was opened."

    def on_mount(self) -> None:
        """Shows the first screen; imports the engine after the first frame."""
        if not self.is_headless:
            watch_signals(self.leave, self.drafting.save)
        self.push_screen(build_screen(self._first_screen, self))
        self.call_after_refresh(self._begin)

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """Returns defaults of this app's own colours for themes that do not set them."""
        return {"muted": DARK.variables["muted"], "faint": DARK.variables["faint"]}

    def _begin(self) -> None:
        examine_less()
        self.client.start(self.controller.disk_path)
        if self._first_screen == "monitor":
            self.run_desk.open(self._runs)
            return
        if self._first_screen != "runs":
            self.controller.begin()
        self.run_desk.ask_runs()

    async def on_event(self, event: Event) -> None:
        """Offers each key to the screen before it reaches a binding or a widget."""
        # Here, where keys are handled in their order: the screen's own queue is behind a later tab.
        top = self.screen_stack[-1:]
        if not (isinstance(event, Key) and any(isinstance(one, Watching) and one.keep_key(event) for one in top)):
            await super().on_event(event)

    # --- screens -------------------------------------------------------------------------------------------

    @property
    def screen_name(self) -> str:
        """Name of the current screen."""
        return self._screen_name

    def go(self, name: str) -> None:
        """Switches to a screen; one that shows a run needs an open run."""
        if (SCREENS[name].needs_run and self.state.run is None) or name == self._screen_name:
            return
        if name == "runs" and self._screen_name != "compare":  # which is left to the list itself
            self._behind = self._screen_name
        self._screen_name = name
        while isinstance(self.screen, ModalScreen):  # dialogs of the screen that is left
            self.pop_screen()
        self.switch_screen(build_screen(name, self))

    def step(self, offset: int) -> None:
        """Moves `offset` screens along the trail, once pending typing has reached the draft."""
        after_typing(self, lambda: self.go(neighbour(self._screen_name, offset)))

    def begin_wizard(self) -> None:
        """Switches to the first screen; reads machine and repository if not done yet."""
        self.go("project")
        self.controller.begin()

    def tell(self, part: StatePart) -> None:
        """Notifies the screens on the stack that a part of the state changed; throttles parts in PACED."""
        if part in PACED:
            self._throttle.ask(part)
        else:
            self._draw(part)

    def alert(self, notice: Notice) -> None:
        """Notifies through the terminal, also over SSH; in a local desktop session the run's own process does."""
        if self._driver is not None and not has_desktop(os.environ):
            self._driver.write(terminal_sequence(notice, os.environ))

    def _draw(self, part: StatePart) -> None:
        # Only those: each message to Textual's empty bottom screen makes it repaint the whole terminal.
        for screen in self.screen_stack:
            if isinstance(screen, Watching):
                screen.post_message(Changed(part))

    # --- messages ------------------------------------------------------------------------------------------

    @on(messages.Answered)
    def _answered(self, message: messages.Answered[Any]) -> None:
        message.settle()
        self.tell(message.fetched.part)
        self.controller.answered(message.fetched.part)

    @on(messages.CheckMade)
    def _check_made(self, message: messages.CheckMade) -> None:
        self.controller.check_made(message)

    @on(messages.ModelPlanned)
    def _model_planned(self, message: messages.ModelPlanned) -> None:
        self.controller.model_planned(message)

    @on(messages.MeasuringProgressed)
    def _measuring_progressed(self, message: messages.MeasuringProgressed) -> None:
        self.state.measuring = message.line
        self.tell(StatePart.MEASURING)

    @on(messages.ReadingProgressed)
    def _reading_progressed(self, message: messages.ReadingProgressed) -> None:
        self.state.reading = message.reading
        self.tell(StatePart.READING)

    @on(messages.Sampled)
    def _sampled(self, message: messages.Sampled) -> None:
        if message.snapshot is not None:
            self.state.snapshots.append(message.snapshot)
            self.tell(StatePart.SNAPSHOTS)

    @on(messages.RunOpened)
    def _run_opened(self, message: messages.RunOpened) -> None:
        self.run_desk.opened(message)

    @on(messages.RunResumed)
    def _run_resumed(self, message: messages.RunResumed) -> None:
        self.run_desk.resumed(message)

    @on(messages.RunNews)
    def _run_news(self, message: messages.RunNews) -> None:
        self.run_desk.heard(message)

    @on(messages.CommandSent)
    def _command_sent(self, message: messages.CommandSent) -> None:
        self.run_desk.sent(message)

    @on(messages.GenerationSaid)
    def _generation_said(self, message: messages.GenerationSaid) -> None:
        self.generation_desk.heard(message)

    @on(messages.RunDeleted)
    def _run_deleted(self, message: messages.RunDeleted) -> None:
        self.run_desk.deleted(message)

    # --- actions -------------------------------------------------------------------------------------------

    def action_help(self) -> None:
        """Shows the keys of the current screen."""
        from elite_tui.screens.help import HelpScreen

        if not isinstance(self.screen, HelpScreen):
            self.push_screen(HelpScreen(self._screen_name), self._chosen_in_help)

    def _chosen_in_help(self, action: Action | None) -> None:
        """Runs the action that was clicked, on the screen under the help."""
        if action is not None and (not action.screens or self.screen.check_action(action.name, ())):
            node = self.screen if action.screens else self
            self.call_later(node.run_action, action.name)

    def action_command_palette(self) -> None:
        """Shows the palette; a dialog is answered first."""
        from elite_tui.screens.palette import Palette

        if not isinstance(self.screen, ModalScreen):
            self.push_screen(Palette(id="--command-palette"))

    def action_show_runs(self) -> None:
        """Switches to the list of runs, and from there back."""
        if self._screen_name == "runs":
            self.leave_runs()
        else:
            self.go("runs")

    def leave_runs(self) -> None:
        """Switches back to the screen from which the list of runs was opened."""
        behind = self._behind
        if behind is None or (SCREENS[behind].needs_run and self.state.run is None):
            self.notify("n starts the wizard, ctrl+q leaves", timeout=4)
        else:
            self.go(behind)

    def action_toggle_theme(self) -> None:
        """Switches to the next theme and saves the choice."""
        self.theme = theme_after(self.theme)
        self.drafting.keep(THEME, self.theme if self.theme != THEMES[0].name else "")

    def action_ask_quit(self) -> None:
        """Quits and saves the draft; if an active run takes commands from here, asks whether to stop it."""
        after_typing(self, self._ask_quit)

    def _ask_quit(self) -> None:
        from elite_tui.screens.confirm import QuitScreen

        if self.state.launching:
            self.notify("the run is being started; one moment", timeout=3)
        elif not self.state.run_controlled:
            self.leave()
        elif not isinstance(self.screen, QuitScreen):
            self.push_screen(QuitScreen(), self._quit_answered)

    def _quit_answered(self, answer: str | None) -> None:
        if answer == "stop":
            self.run_desk.stop_and_leave()
        elif answer == "detach":
            self.leave()

    def action_help_quit(self) -> None:
        """Names the key that quits, for ctrl+c where nothing is selected that it could copy."""
        self.notify("ctrl+q quits; runs go on", timeout=4)

    def leave(self, run_state: str = "goes on") -> None:
        """Closes the app. Never ends a run; `run_state` describes the run on screen for the line printed after exit."""
        self.drafting.save()
        self.exit(farewell(self.state, run_state))

    def on_unmount(self) -> None:
        """Saves the draft, ends measurements, reading and generation, detaches from runs and stops telemetry."""
        self.drafting.close()
        self.controller.close()
        self.generation_desk.close()
        self.client.close()

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """Yields the actions available on the current screen for the command palette."""
        compared = self.state.comparison.value is not None
        for entry in SCREENS.values():
            reachable = compared if entry.name == "compare" else self.state.run is not None or not entry.needs_run
            if reachable and entry.name != self._screen_name:
                yield SystemCommand(f"Go to {entry.title}", "Switch to this screen.", partial(self.go, entry.name))
        for action in ACTIONS:
            if action.name == "command_palette" or (action.screens and self._screen_name not in action.screens):
                continue
            if action.screens and not screen.check_action(action.name, ()):
                continue
            node = screen if action.screens else self
            yield SystemCommand(action.label, action.help, getattr(node, f"action_{action.name}"))

    def _load_screen_css(self, screen: Screen[Any]) -> None:
        """Reads a screen's styles first, so that they alone are parsed; Textual parses those of all screens again."""
        for path in screen.css_path:
            if not self.stylesheet.has_source(str(path)):
                self.stylesheet.read(path)
        super()._load_screen_css(screen)

    def _fatal_error(self) -> None:
        """Handles a crash of the app: logs the traceback, prints three lines on the terminal."""
        error = self._exception
        log = record_crash(error) if error is not None else None
        lines = [f"elite-tui: unexpected {type(error).__name__}: {printable(str(error))}"]
        if log is not None:
            lines.append(f"the details are in {log}")
        if watched := farewell(self.state, "goes on"):
            lines.append(watched)
        self.panic(Text("\n".join(lines)))


def after_typing(app: App[Any], then: Callable[[], object]) -> None:
    """Calls `then` once the focused widget and its ancestors have emptied their message queues.

    The App handles a key with priority as soon as it is read, while the letters before it may still wait in the
    queue of their field, and the field's own messages in those of its ancestors. Without this, a quick `ctrl+q` would
    quit before the last letters are in the draft.
    """
    focused = app.focused
    chain = [] if focused is None else [focused, *(node for node in focused.ancestors if node is not app)]
    # Each twice: once for the messages in its queue, once for those that it posts to itself while handling them.
    _pass_through(app, [node for node in chain for _ in range(2)], then)


def _pass_through(app: App[Any], nodes: Sequence[DOMNode], then: Callable[[], object]) -> None:
    for index, node in enumerate(nodes):
        if node.call_later(_pass_through, app, nodes[index + 1 :], then):
            return
    app.call_later(then)
