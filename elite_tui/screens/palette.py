"""Finds actions and screens by name: Textual's command palette, which also takes keys before it has found any."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual import on
from textual.command import CommandList, CommandPalette
from textual.widgets import Input

if TYPE_CHECKING:
    from textual.worker import Worker


class Palette(CommandPalette):
    """The palette. Textual's own fails on a page key while its list is empty or not laid out yet."""

    _submitted: Input.Submitted | None = None
    "An enter that waits for what is searched for."

    @on(Input.Submitted)
    def _wait_for_finds(self, event: Input.Submitted) -> None:
        # Textual's own would choose among the finds of fewer letters, or among none.
        if any(not worker.is_finished for worker in self._searches()):
            self._submitted = event
            event.stop()
            event.prevent_default()

    def _searches(self) -> list[Worker[object]]:
        return [worker for worker in self.workers if worker.node is self]

    def on_worker_state_changed(self) -> None:
        """Chooses what an enter has waited for, once the last search has ended."""
        event = self._submitted
        if event is not None and all(worker.is_finished for worker in self._searches()):
            self._submitted = None
            if self.is_current and event.value == event.input.value:
                self._select_or_command()

    def _action_command_list(self, action: str) -> None:
        commands = self.query_one(CommandList)
        if action == "select" or (commands.option_count and commands.scrollable_content_region):
            super()._action_command_list(action)
