"""The App: owns the state and the workers, moves between rooms, and folds messages into the state."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rich.text import Text
from textual import on
from textual.app import App, SystemCommand

from elite_tui import messages
from elite_tui.actions import ACTIONS, bindings_for, global_actions
from elite_tui.generation.desk import GenerationDesk
from elite_tui.leaving import farewell, watch_signals
from elite_tui.link.workers import EngineLink, existing_folder
from elite_tui.messages import Changed
from elite_tui.pacing import Pacer
from elite_tui.rooms import ROOMS, build_room, neighbour
from elite_tui.runs.desk import RunDesk
from elite_tui.screens.room import Watching
from elite_tui.themes import DARK, THEMES, theme_after, theme_named
from elite_tui.trouble import record_trouble
from elite_tui.typing_order import after_typing
from elite_tui.wizard.desk import ASK_DELAY, WizardDesk
from elite_tui.words.figures import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from textual.binding import BindingType
    from textual.screen import Screen
    from textual.timer import Timer

    from elite_tui.fetched import Fetched
    from elite_tui.link.calls import Engine
    from elite_tui.state import AppState

THEME = "theme"
"Under which name the draft keeps the theme."
SAVE_DELAY = 0.5
"Seconds until what was typed is written: all that a killed app can lose."
REPOSITORY_FIELDS = frozenset({"data.repositories", "data.max_file_bytes"})
PLAN_SECTIONS = frozenset({"model", "lora", "training", "checkpoint"})
"What the plan, its costs and the optimisations depend on."
PLAN_FIELDS = frozenset({"data.held_out_fraction", "data.near_duplicates"})


PACED = frozenset({"run", "snapshots"})
"Parts of the state that change by themselves, and are drawn no more often than Pacer says."


class EliteApp(App[str]):
    """The wizard and the monitor. Returns a line to print after leaving, if there is something to say."""

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
        self, state: AppState, engine: Engine, *, first_room: str = "project", runs: Sequence[str | None] = (None,)
    ) -> None:
        super().__init__()
        for theme in THEMES:
            self.register_theme(theme)
        self.theme = theme_named(state.draft.kept(THEME))
        self.state = state
        self.link = EngineLink(self, engine)
        self.desk = WizardDesk(self)
        self.run_desk = RunDesk(self)
        self.generation_desk = GenerationDesk(self)
        self._pacer = Pacer(self, self._draw)
        self._first_room = first_room
        self._runs = runs
        "References of the runs to open, where the first room is the monitor; None is the newest."
        self._room = first_room
        self._save_timer: Timer | None = None
        self._ask_timer: Timer | None = None

    def on_mount(self) -> None:
        """Shows the first room; the engine is imported after its first frame."""
        if not self.is_headless:
            watch_signals(self)
        self.push_screen(build_room(self._first_room))
        self.call_after_refresh(self._begin)

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """Our own colour names, for a theme that does not set them."""
        return {"muted": DARK.variables["muted"], "faint": DARK.variables["faint"]}

    def _begin(self) -> None:
        disk = self._disk_path()
        self.link.start(disk)
        if self._first_room == "monitor":
            self.run_desk.open(self._runs)
        elif self._first_room == "runs":
            self.ask_runs()
        else:
            self.ask_machine()
            self.ask_repository()
            self.ask_runs()

    def _disk_path(self) -> Path:
        return existing_folder(str(self.state.draft.get("output.directory")))

    # --- rooms ---------------------------------------------------------------------------------------------

    @property
    def room(self) -> str:
        """The room on screen."""
        return self._room

    def go(self, name: str) -> None:
        """Enters a room; one that shows a run needs a run."""
        if (ROOMS[name].needs_run and self.state.run is None) or name == self._room:
            return
        self._room = name
        self.switch_screen(build_room(name))

    def step(self, offset: int) -> None:
        """Enters the room so many steps along the trail, with what was typed in this one."""
        after_typing(self, lambda: self.go(neighbour(self._room, offset)))

    def tell(self, what: str) -> None:
        """Tells the screens on the stack that watch the state that a part of it changed."""
        if what in PACED:
            self._pacer.ask(what)
        else:
            self._draw(what)

    def _draw(self, what: str) -> None:
        # Only those: each message that Textual's empty bottom screen gets makes it paint the whole terminal anew.
        for screen in self.screen_stack:
            if isinstance(screen, Watching):
                screen.post_message(Changed(what))

    def begin_wizard(self) -> None:
        """Enters the first room, asking what a wizard asks if this is the first time."""
        self.go("project")
        if self.state.machine.value is None and not self.state.machine.loading:
            self.ask_machine()
            self.ask_repository()

    # --- the draft -----------------------------------------------------------------------------------------

    def edit(self, path: str, text: str) -> None:
        """A field was typed into: keeps it, and asks again what depends on it once the typing pauses."""
        # Controls also report the value that they were made with.
        if self.state.draft.set_text(path, text):
            self.draft_changed(path)

    def draft_changed(self, path: str) -> None:
        """What follows from another value at a path."""
        self.state.preflight.settle_nothing()
        self.state.checks.forget()
        self.desk.draft_changed(path)
        self.save_soon()
        if path in REPOSITORY_FIELDS | PLAN_FIELDS or path.partition(".")[0] in PLAN_SECTIONS:
            if self._ask_timer is not None:
                self._ask_timer.stop()
            ask = self.ask_repository if path in REPOSITORY_FIELDS else self.ask_tiers
            self._ask_timer = self.set_timer(ASK_DELAY, ask)
        self.tell("draft")

    def save_soon(self) -> None:
        """Writes the draft within a moment, also while somebody types without a pause."""
        if self._save_timer is None:
            self._save_timer = self.set_timer(SAVE_DELAY, self.save_draft)

    def save_draft(self) -> None:
        """Writes the draft; a state directory that cannot be written is said."""
        self._save_timer = None
        try:
            self.state.draft.save()
        except OSError as error:
            self.notify(
                f"the wizard's entries cannot be kept: {printable(str(error))}",
                severity="warning",
                markup=False,
            )

    # --- questions to the engine ---------------------------------------------------------------------------

    def ask_repository(self) -> None:
        """Reads the repositories of the draft."""
        draft = self.state.draft
        if draft.problems().keys() & REPOSITORY_FIELDS:
            self.state.repository.settle_nothing()
            self.tell("repository")
            return
        self.state.repository.ask()
        self.tell("repository")
        self.link.read_repositories(list(draft.get("data.repositories")), draft.get("data.max_file_bytes"))

    def ask_machine(self) -> None:
        """Takes the inventory."""
        self.state.machine.ask()
        self.tell("machine")
        self.link.find_machine(self._disk_path())

    def ask_tiers(self) -> None:
        """Plans the tiers, once the machine is known and the draft is valid."""
        machine = self.state.machine.value
        if machine is None or self.state.draft.problems():
            return
        self.state.tiers.ask()
        self.tell("tiers")
        self.link.plan_tiers(machine, self.state.draft.mapping(), self.state.tokens)
        self.desk.ask_what_if()

    def ask_preflight(self) -> None:
        """Checks what can be checked before a run, if the draft's own rules are kept."""
        if self.state.draft.problems():
            return
        self.state.preflight.ask()
        self.tell("preflight")
        self.link.check(self.state.draft.mapping())

    def ask_runs(self) -> None:
        """Lists the runs."""
        self.state.runs.ask()
        self.tell("runs")
        self.link.list_runs()

    def launch(self) -> None:
        """Starts the run that preflight approved."""
        config = self.state.preflight.value
        if config is None or self.state.launching:
            return
        self.state.launching = True
        self.tell("preflight")
        self.link.launch(config)

    # --- answers -------------------------------------------------------------------------------------------

    @on(messages.RepositoryRead)
    def _repository_read(self, message: messages.RepositoryRead) -> None:
        self.state.repository.settle(message.outcome)
        self.tell("repository")
        self.ask_tiers()

    @on(messages.MachineFound)
    def _machine_found(self, message: messages.MachineFound) -> None:
        self.state.machine.settle(message.outcome)
        self.tell("machine")
        self.ask_tiers()

    @on(messages.TiersPlanned)
    def _tiers_planned(self, message: messages.TiersPlanned) -> None:
        self.state.tiers.settle(message.outcome)
        self.tell("tiers")

    @on(messages.PreflightDone)
    def _preflight_done(self, message: messages.PreflightDone) -> None:
        self.state.preflight.settle(message.outcome)
        self.tell("preflight")

    @on(messages.CheckMade)
    def _check_made(self, message: messages.CheckMade) -> None:
        self.desk.check_made(message)

    @on(messages.Progressed)
    def _progressed(self, message: messages.Progressed) -> None:
        setattr(self.state, message.what, message.progress)
        self.tell(message.what)

    @on(messages.Answered)
    def _answered(self, message: messages.Answered) -> None:
        fetched: Fetched[Any] = getattr(self.state, message.what)
        fetched.settle(message.outcome)
        self.tell(message.what)
        if message.what in ("profile", "probe") and fetched.value is not None:
            self.ask_machine()

    @on(messages.RunsListed)
    def _runs_listed(self, message: messages.RunsListed) -> None:
        self.state.runs.settle(message.outcome)
        self.tell("runs")

    @on(messages.Sampled)
    def _sampled(self, message: messages.Sampled) -> None:
        if message.snapshot is not None:
            self.state.snapshots.append(message.snapshot)
            self.tell("snapshots")

    @on(messages.RunOpened)
    def _run_opened(self, message: messages.RunOpened) -> None:
        self.run_desk.opened(message)

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
        """Shows the keys of the present room."""
        from elite_tui.screens.help import HelpScreen

        if not isinstance(self.screen, HelpScreen):
            self.push_screen(HelpScreen(self._room))

    def action_show_runs(self) -> None:
        """Enters the list of runs."""
        self.go("runs")

    def action_toggle_theme(self) -> None:
        """The next theme; it is kept for the next time."""
        self.theme = theme_after(self.theme)
        self.state.draft.keep(THEME, self.theme if self.theme != THEMES[0].name else "")
        self.save_soon()

    def action_ask_quit(self) -> None:
        """Leaves, with all that was typed; with a run under way it asks what becomes of it."""
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

    def leave(self, run_state: str = "goes on") -> None:
        """Closes the app. A run is never ended by this; `run_state` says what the one on screen does now."""
        self.save_draft()
        self.exit(farewell(self.state, run_state))

    def on_unmount(self) -> None:
        """Lets go of the run and the telemetry, and of nothing that was typed."""
        with contextlib.suppress(OSError):
            self.state.draft.save()
        self.desk.close()
        self.generation_desk.close()
        self.link.close()

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """The command palette: the actions that can be taken here and now."""
        for action in ACTIONS:
            if action.name == "command_palette" or (action.rooms and self._room not in action.rooms):
                continue
            if action.rooms and not screen.check_action(action.name, ()):
                continue
            node = screen if action.rooms else self
            yield SystemCommand(action.label, action.help, getattr(node, f"action_{action.name}"))

    def _fatal_error(self) -> None:
        """A failure of the app itself: the traceback goes to a log, the terminal gets three lines."""
        error = self._exception
        log = record_trouble(error) if error is not None else None
        lines = [f"elite-tui: unexpected {type(error).__name__}: {printable(str(error))}"]
        if log is not None:
            lines.append(f"the details are in {log}")
        if watched := farewell(self.state, "goes on"):
            lines.append(watched)
        self.panic(Text("\n".join(lines)))
