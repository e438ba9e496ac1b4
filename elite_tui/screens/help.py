"""Shows a screen's keys, from the same table as the bindings. A click on one does what the key does."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.keys import format_key
from textual.screen import ModalScreen
from textual.widgets import Static

from elite_tui.action import Action
from elite_tui.actions import global_actions, screen_actions
from elite_tui.screen_list import SCREENS

if TYPE_CHECKING:
    from textual.app import ComposeResult
    from textual.binding import BindingType
    from textual.events import Click


class HelpRow(Horizontal):
    """One action; a click closes the help and runs it."""

    def __init__(self, action: Action) -> None:
        super().__init__(id=f"help-{action.name}", classes="action")
        self._action = action

    def compose(self) -> ComposeResult:
        """Composes keys, label and help."""
        yield Static(_keys(self._action), classes="keys", markup=False)
        yield Static(self._action.help, classes="what", markup=False)

    def on_click(self, event: Click) -> None:
        """Closes the help with the action as its answer."""
        event.stop()
        self.screen.dismiss(self._action)


class HelpScreen(ModalScreen[Action | None]):
    """The actions of one screen and the global ones. Its answer is the action that was clicked."""

    CSS_PATH = "help.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [("escape,f1,enter,q,question_mark", "dismiss(None)", "Close")]

    def __init__(self, screen_name: str) -> None:
        super().__init__()
        self._screen_name = screen_name

    def compose(self) -> ComposeResult:
        """Composes two lists of keys."""
        with VerticalScroll(id="help") as scroll:
            scroll.border_title = "Keys"
            scroll.border_subtitle = "esc closes"
            for title, actions in (
                (SCREENS[self._screen_name].title, screen_actions(self._screen_name)),
                ("Everywhere", global_actions()),
            ):
                yield Static(title, classes="section", markup=False)
                for action in actions:
                    yield HelpRow(action)
            yield Static("a click on a line does what its key does", classes="section muted")


def _keys(action: Action) -> Content:
    keys = ", ".join(map(format_key, action.keys.split(",")))
    return Content.assemble((f"{keys:<11} ", "bold"), (action.label, "$text-accent"))
