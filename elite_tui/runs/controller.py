"""Handles the run screens' requests to start, follow, command, compare and delete runs.

The App passes it the messages that concern runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from elite_tui import messages
from elite_tui.format.figures import printable
from elite_tui.runs.open_runs import OpenRun
from elite_tui.runs.view import RunView
from elite_tui.state_part import StatePart
from engine.errors import EliteError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from elite_tui.client.workers import EngineClient
    from elite_tui.host import Host
    from elite_tui.state import AppState
    from engine.runs.run_summary import RunSummary


class RunController:
    """Controller of the run screens."""

    def __init__(self, host: Host, state: AppState, client: EngineClient) -> None:
        self._host = host
        self._state = state
        self._client = client
        self._leave_after: str | None = None
        "Id of the command whose delivery ends the app."
        self._compared: list[Path] = []

    # --- starting, opening and following -------------------------------------------------------------------

    def launch(self) -> None:
        """Starts the run that preflight approved."""
        state = self._state
        if state.preflight.value is None or state.launching or state.simulated is not None:
            return
        state.launching = True
        self._host.tell(StatePart.PREFLIGHT)
        self._client.launch(state.preflight.value)

    def resume(self, path: Path) -> None:
        """Resumes a run that has ended from its last checkpoint, and shows it."""
        if self._state.launching:
            return
        self._state.launching = True
        self._host.tell(StatePart.RUN)
        self._client.resume(path)

    def resumed(self, message: messages.RunResumed) -> None:
        """Follows the resumed run from its first event, or reports the error."""
        outcome = message.outcome
        if not isinstance(outcome, EliteError):
            self.opened(messages.RunOpened(outcome, launched=True))
            return
        self._state.launching = False
        self._host.notify(str(outcome), title="not resumed", severity="error", markup=False)
        self._host.tell(StatePart.RUN)

    def open(self, references: Sequence[str | None]) -> None:
        """Opens runs by reference, each in a tab."""
        self._client.open_runs(references)

    def opened(self, message: messages.RunOpened) -> None:
        """Follows a run that was launched or attached to, or shows the error."""
        state, outcome = self._state, message.outcome
        state.launching = False
        state.opening = None
        if isinstance(outcome, EliteError):
            if message.launched:
                state.preflight.settle(outcome)
                self._host.tell(StatePart.PREFLIGHT)
            else:
                state.opening = outcome
                self._host.tell(StatePart.RUN)
            return
        key = str(outcome.run.path)
        known = state.open_runs.find(key)
        if known is not None and not message.launched:
            outcome.close()
        else:
            self._client.follow(key, outcome)
            known = OpenRun(key=key, path=outcome.run.path, view=RunView(run_id=outcome.run.id))
            state.open_runs.add(known)
        if message.show or state.open_runs.current is None:
            state.open_runs.current = known
            self.shown()
        else:
            self._host.tell(StatePart.RUN)

    def shown(self) -> None:
        """Shows the monitor for the current run."""
        self._state.report.settle_nothing()
        self._host.go("monitor")
        self._host.tell(StatePart.RUN)

    def heard(self, message: messages.RunNews) -> None:
        """Folds a run's news into its view."""
        run = self._state.open_runs.find(message.key)
        message.news.folded.set()
        for notice in message.news.notices:
            self._host.alert(notice)
            if run is not self._state.open_runs.current:
                self._host.notify(notice.text, title=notice.title, timeout=8, markup=False)
        if run is not None:
            before = (run.view, round(run.share, 2))
            run.take(message.news)
            # While a long journal is read, only its latest events and the share that was read are news.
            if run.filling is None or message.news.glance or before != (run.view, round(run.share, 2)):
                self._host.tell(StatePart.RUN)

    def step(self, offset: int) -> None:
        """Shows the run `offset` tabs away."""
        self._state.open_runs.step(offset)
        self.shown()

    def show(self, index: int) -> None:
        """Shows the run of a tab, counted from 0."""
        self._state.open_runs.current = list(self._state.open_runs)[index]
        self.shown()

    def close(self) -> None:
        """Closes the current tab; its run continues."""
        state = self._state
        if state.open_runs.current is not None:
            key = state.open_runs.current.key
            self._client.let_go(key)
            state.open_runs.close(key)
        if state.open_runs.current is not None:
            self.shown()
        else:
            self._host.go("runs")

    # --- commands ------------------------------------------------------------------------------------------

    def send(self, command: str) -> str | None:
        """Sends a command to the run on screen and returns its id."""
        current = self._state.open_runs.current
        if current is None:
            return None
        command_id = self._client.send(current.key, command)
        if command_id is not None:
            current.view.pending[command_id] = command
            self._host.tell(StatePart.RUN)
        return command_id

    def stop_and_leave(self) -> None:
        """Asks the run on screen to stop; leaves only once the command is sent, as the workers end with the app."""
        self._leave_after = self.send("Stop")

    def sent(self, message: messages.CommandSent) -> None:
        """Reports a failed command; leaves the app if it was waiting for this one."""
        run = self._state.open_runs.find(message.key)
        if message.error is not None:
            if run is not None:
                run.view.pending.pop(message.command_id, None)
            self._host.notify(str(message.error), title=message.command, severity="error", markup=False)
        elif message.command_id == self._leave_after:
            self._host.leave("is stopping; it saves a checkpoint first")
        self._host.tell(StatePart.RUN)

    # --- reading finished and listed runs ----------------------------------------------------------------------

    def ask_runs(self) -> None:
        """Lists the runs."""
        self._client.ask(self._state.runs, self._client.engine.list_runs)

    def ask_report(self) -> None:
        """Reads the results of the run on screen from its folder."""
        path = self._state.run_path
        if path is None:
            return
        self._client.ask(self._state.report, lambda: self._client.engine.read_report(path))

    def compare(self, runs: Sequence[RunSummary]) -> None:
        """Reads runs and shows them side by side."""
        self._compared = [run.path for run in runs]
        self._state.comparison.settle_nothing()
        self.compare_again()
        self._host.go("compare")

    def compare_again(self) -> None:
        """Reads the compared runs again."""
        paths = list(self._compared)
        self._client.ask(self._state.comparison, lambda: self._client.engine.compare(paths))

    # --- deleting ------------------------------------------------------------------------------------------

    def delete(self, run_id: str, path: Path) -> None:
        """Deletes a run that has ended, after the user has confirmed."""
        self._client.delete_run(run_id, path)

    def deleted(self, message: messages.RunDeleted) -> None:
        """Closes a deleted run's tab, or reports the error; lists the runs again."""
        if message.error is not None:
            self._host.notify(str(message.error), title="not deleted", severity="error", markup=False)
        else:
            self._host.notify(f"deleted {printable(message.run_id)}", timeout=4, markup=False)
            key = str(message.path)
            self._client.let_go(key)
            self._state.open_runs.close(key)
        self.ask_runs()
