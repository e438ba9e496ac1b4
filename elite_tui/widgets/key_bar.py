"""Shows the keys of the current screen at the bottom: as many as the width holds whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.cells import cell_len
from textual.widgets import Footer
from textual.widgets._footer import FooterKey

if TYPE_CHECKING:
    from textual.app import ComposeResult
    from textual.binding import ActiveBinding
    from textual.screen import Screen

HELP, QUIT = "help", "ask_quit"
KEY_PADDING = 3
"Columns of a key beside its name and its label."


class KeyBar(Footer):
    """Textual's footer with the help key, which lists all keys, at the end; keys that do not fit are left out.

    Textual composes its footer again for every call of `refresh_bindings`, a dozen times while a screen opens. This one
    does so only where the keys to show have changed.
    """

    def __init__(self) -> None:
        super().__init__(show_command_palette=False)
        self._shown: tuple[object, ...] | None = None
        self._asked = False

    def compose(self) -> ComposeResult:
        """Composes the keys that fit, those of the screen before the global ones; marks the help key for the style."""
        keys = self._keys()
        self._shown = self._state(keys)
        gap = 0 if self.screen.has_class("-narrow") else 1
        widths = {id(key): self._width(key) + gap for key in keys}
        room = self.app.size.width - sum(widths[id(key)] for key in keys if key.binding.action in (HELP, QUIT)) - 1
        for key in keys:
            binding = key.binding
            if binding.action not in (HELP, QUIT):
                room -= widths[id(key)]
                if room < 0:
                    continue
            widget = FooterKey(
                binding.key,
                self.app.get_key_display(binding),
                binding.description,
                binding.action,
                disabled=not key.enabled,
                tooltip=key.tooltip,
                classes="-help" if binding.action == HELP else "",
            )
            # Without the watcher, which would apply the styles of each key once more.
            widget.set_reactive(FooterKey.compact, False)
            yield widget

    def _keys(self) -> list[ActiveBinding]:
        """The bindings to show, the first one of each action."""
        found: dict[str, ActiveBinding] = {}
        for key in self.screen.active_bindings.values():
            if key.binding.show:
                found.setdefault(key.binding.action, key)
        return list(found.values())

    def _state(self, keys: list[ActiveBinding]) -> tuple[object, ...]:
        shown = tuple((key.binding.key, key.binding.description, key.enabled, key.tooltip) for key in keys)
        return self.app.size.width, self.screen.has_class("-narrow"), shown

    def _width(self, key: ActiveBinding) -> int:
        return cell_len(self.app.get_key_display(key.binding)) + cell_len(key.binding.description) + KEY_PADDING

    def bindings_changed(self, screen: Screen[object]) -> None:
        """Looks at the keys once after the next refresh, however often they were said to have changed."""
        if self.is_attached and screen is self.screen and not self._asked:
            self._asked = True
            self.call_after_refresh(self._follow)

    async def _follow(self) -> None:
        self._asked = False
        if self.is_attached and self.app.app_focus and self._state(self._keys()) != self._shown:
            await self.recompose()

    def on_resize(self) -> None:
        """Chooses the keys for another width."""
        self.bindings_changed(self.screen)
