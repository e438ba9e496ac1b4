"""Sends commands to a run from keys, footer and palette."""

from __future__ import annotations

from typing import TYPE_CHECKING

from elite_tui.screens.app_screen import AppScreen
from elite_tui.screens.confirm import ConfirmScreen

if TYPE_CHECKING:
    from elite_tui.runs.open_runs import OpenRun
    from elite_tui.screens.app_screen import Elite

COMMAND_OF_ACTION = {
    "pause": "Pause",
    "resume": "Resume",
    "save_now": "SaveNow",
    "evaluate_now": "EvaluateNow",
    "stop": "Stop",
}


class RunCommands(AppScreen):
    """Mixin of screens that show the current run."""

    def __init__(self, elite: Elite) -> None:
        super().__init__(elite)
        self._offered: tuple[object, ...] = ()
        "Inputs of the footer's keys; it is recomposed only when they change."

    def offer(self, run: OpenRun) -> None:
        """Updates the footer with the commands that the run takes now."""
        view = run.view
        offered = (
            run.key,
            view.ended,
            view.paused,
            tuple(view.pending.values()),
            run.access,
            len(self.state.open_runs),
            self.state.launching,
        )
        if offered != self._offered:
            self._offered = offered
            self.refresh_bindings()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002
        """Allows only commands that the run takes now; dims the keys of a run that cannot be controlled."""
        current = self.state.open_runs.current
        run = current.view if current is not None else None
        if action in ("next_run", "previous_run"):
            return len(self.state.open_runs) > 1
        if action == "show_result":
            return run is not None and run.ended
        if action == "detach":
            return self.state.run_active
        if action not in COMMAND_OF_ACTION:
            return True
        if current is None or run is None or COMMAND_OF_ACTION[action] in run.pending.values():
            return False
        if run.ended:
            if action != "resume" or not run.resumable or self.state.launching:
                return False
        elif action in ("pause", "resume") and run.paused is not (action == "resume"):
            return False
        return None if current.access is not None and current.access.refusal else True

    def action_pause(self) -> None:
        """Sends Pause."""
        self.elite.run_desk.send("Pause")

    def action_resume(self) -> None:
        """Sends Resume; resumes a run that has ended."""
        run, path = self.state.run, self.state.run_path
        if run is not None and path is not None and run.ended:
            self.elite.run_desk.resume(path)
        else:
            self.elite.run_desk.send("Resume")

    def action_save_now(self) -> None:
        """Sends SaveNow."""
        self.elite.run_desk.send("SaveNow")

    def action_evaluate_now(self) -> None:
        """Sends EvaluateNow."""
        self.elite.run_desk.send("EvaluateNow")

    def action_stop(self) -> None:
        """Sends Stop after confirmation."""

        def answered(answer: str | None) -> None:
            if answer == "stop":
                self.elite.run_desk.send("Stop")

        self.app.push_screen(
            ConfirmScreen(
                "Stop this run?",
                "It ends after the present step and saves a checkpoint; r or `engine train --resume` continues it.",
                (("stop", "Stop and save"), ("cancel", "Keep training")),
                safe="cancel",
            ),
            answered,
        )

    def action_detach(self) -> None:
        """Leaves the app; the run continues."""
        self.elite.leave()
