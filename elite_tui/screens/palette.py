"""Finds actions and screens by name: Textual's command palette, which also takes keys before it has found any."""

from __future__ import annotations

from textual.command import CommandList, CommandPalette


class Palette(CommandPalette):
    """The palette. Textual's own fails on a page key while its list is empty or not laid out yet."""

    def _action_command_list(self, action: str) -> None:
        commands = self.query_one(CommandList)
        if commands.option_count and commands.scrollable_content_region:
            super()._action_command_list(action)
