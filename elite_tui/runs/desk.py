"""RunDesk: what the rooms of runs ask for: opening, following, commanding, comparing and deleting runs.

The App owns it, and hands it the messages that are about runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from elite_tui.runs.open_runs import OpenRun
from elite_tui.runs.view import RunView
from elite_tui.words.figures import printable
from engine.errors import EliteError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from elite_tui import messages
    from elite_tui.app import EliteApp
    from engine.runtime.run_summary import RunSummary


class RunDesk:
    """Questions of the rooms of runs, and what follows from the answers."""

    def __init__(self, app: EliteApp) -> None:
        self._app = app
        self._leave_after: str | None = None
        "Command that, once it is handed over, ends the app."
        self._compared: list[Path] = []

    # --- opening and following -----------------------------------------------------------------------------

    def open(self, references: Sequence[str | None]) -> None:
        """Opens runs by reference, each in a tab."""
        self._app.link.open_runs(references)

    def opened(self, message: messages.RunOpened) -> None:
        """A run was launched or attached to, or could not be."""
        app, state, outcome = self._app, self._app.state, message.outcome
        state.launching = False
        state.opening = None
        if isinstance(outcome, EliteError):
            if message.launched:
                state.preflight.settle(outcome)
                app.tell("preflight")
            else:
                state.opening = outcome
                app.tell("run")
            return
        key = str(outcome.run.path)
        known = state.open_runs.find(key)
        if known is not None and not message.launched:
            outcome.close()
        else:
            app.link.follow(key, outcome)
            known = OpenRun(key=key, path=outcome.run.path, view=RunView(run_id=outcome.run.id))
            state.open_runs.add(known)
        if message.show or state.open_runs.current is None:
            state.open_runs.current = known
            self.shown()
        else:
            app.tell("run")

    def shown(self) -> None:
        """Another run is on screen."""
        self._app.state.report.settle_nothing()
        self._app.go("monitor")
        self._app.tell("run")

    def heard(self, message: messages.RunNews) -> None:
        """A run had something to say."""
        run = self._app.state.open_runs.find(message.key)
        if run is not None:
            run.take(message.news)
            self._app.tell("run")

    def step(self, offset: int) -> None:
        """Shows the run in the tab beside."""
        self._app.state.open_runs.step(offset)
        self.shown()

    def show(self, index: int) -> None:
        """Shows the run in a tab, counted from 0."""
        self._app.state.open_runs.current = list(self._app.state.open_runs)[index]
        self.shown()

    def close(self) -> None:
        """Ends the tab on screen; its run goes on."""
        state = self._app.state
        if state.open_runs.current is not None:
            key = state.open_runs.current.key
            self._app.link.let_go(key)
            state.open_runs.close(key)
        if state.open_runs.current is not None:
            self.shown()
        else:
            self._app.go("runs")

    # --- commands ------------------------------------------------------------------------------------------

    def send(self, command: str) -> str | None:
        """Sends a command to the run on screen, and returns its id."""
        current = self._app.state.open_runs.current
        if current is None:
            return None
        command_id = self._app.link.send(current.key, command)
        if command_id is not None:
            current.view.pending[command_id] = command
            self._app.tell("run")
        return command_id

    def stop_and_leave(self) -> None:
        """Asks the run on screen to stop; the app ends when the command is handed over: workers end with it."""
        self._leave_after = self.send("Stop")

    def sent(self, message: messages.CommandSent) -> None:
        """A command was handed over, or could not be."""
        app, run = self._app, self._app.state.open_runs.find(message.key)
        if message.error is not None:
            if run is not None:
                run.view.pending.pop(message.command_id, None)
            app.notify(str(message.error), title=message.command, severity="error", markup=False)
        elif message.command_id == self._leave_after:
            app.leave("is stopping; it saves a checkpoint first")
        app.tell("run")

    # --- reading what runs left ----------------------------------------------------------------------------

    def ask_report(self) -> None:
        """Reads what the folder of the run on screen says of its result."""
        app, path = self._app, self._app.state.run_path
        if path is None:
            return
        app.state.report.ask()
        app.link.ask("report", lambda: app.link.engine.read_report(path))

    def compare(self, runs: Sequence[RunSummary]) -> None:
        """Reads some runs and shows them side by side."""
        self._compared = [run.path for run in runs]
        self._app.state.comparison.settle_nothing()
        self.compare_again()
        self._app.go("compare")

    def compare_again(self) -> None:
        """Reads the compared runs anew."""
        app, paths = self._app, list(self._compared)
        app.state.comparison.ask()
        app.link.ask("comparison", lambda: app.link.engine.compare(paths))

    # --- deleting ------------------------------------------------------------------------------------------

    def delete(self, run_id: str, path: Path) -> None:
        """Deletes a run that has ended; a person has confirmed it."""
        self._app.link.delete_run(run_id, path)

    def deleted(self, message: messages.RunDeleted) -> None:
        """A run was deleted, or could not be."""
        app = self._app
        if message.error is not None:
            app.notify(str(message.error), title="not deleted", severity="error", markup=False)
        else:
            app.notify(f"deleted {printable(message.run_id)}", timeout=4, markup=False)
            key = str(message.path)
            app.link.let_go(key)
            app.state.open_runs.close(key)
        app.ask_runs()
