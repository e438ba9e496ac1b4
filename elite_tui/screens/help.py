"""Shows a screen's keys, from the same table as the bindings."""

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


class HelpScreen(ModalScreen[None]):
    """The actions of one screen and the global ones."""

    CSS_PATH = "help.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [("escape,f1,enter,q,question_mark", "dismiss", "Close")]

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
                    with Horizontal(classes="action"):
                        yield Static(_keys(action), classes="keys", markup=False)
                        yield Static(action.help, classes="what", markup=False)
            yield Static("the mouse works too", classes="section muted")


def _keys(action: Action) -> Content:
    keys = ", ".join(map(format_key, action.keys.split(",")))
    return Content.assemble((f"{keys:<11} ", "bold"), (action.label, "$text-accent"))
