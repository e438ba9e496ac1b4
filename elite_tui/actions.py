"""Every action of the app, once: key bindings, footer, help page and command palette are made from this table.

An action `name` is carried out by `action_<name>` of the screen that lists the room, or of the App for those
without rooms. `Binding.id` is the action's name, so a keymap can change any key.
"""

from __future__ import annotations

from textual.binding import Binding

from elite_tui.action import Action
from elite_tui.run_actions import RUN_ACTIONS

FORM_ROOMS = ("project", "hardware", "tiers", "options", "review")

ACTIONS: tuple[Action, ...] = (
    # --- wizard
    Action(
        name="forward",
        keys="ctrl+n",
        label="Continue",
        help="Go to the next room of the wizard.",
        rooms=("project", "hardware", "tiers", "options"),
        priority=True,
    ),
    Action(
        name="start",
        keys="ctrl+s",
        label="Start",
        help="Start the run with the configuration shown.",
        rooms=("review",),
        priority=True,
    ),
    Action(
        name="back",
        keys="escape",
        label="Back",
        help="Go to the room before this one. Nothing typed is lost.",
        rooms=("hardware", "tiers", "options", "review"),
    ),
    Action(
        name="rescan",
        keys="f5",
        label="Rescan",
        help="Read the repository, the machine or the list of runs again.",
        rooms=("project", "hardware", "tiers", "review", "runs", "compare"),
    ),
    Action(
        name="recommend",
        keys="r",
        label="Recommended",
        help="Choose the recommended tier, and let the engine keep choosing it.",
        rooms=("tiers",),
    ),
    Action(
        name="reset_field",
        keys="f6",
        label="Default",
        help="Set the field under the cursor back to its default.",
        rooms=("options",),
    ),
    Action(
        name="next_problem",
        keys="f8",
        label="Problem",
        help="Go to the next field that has a problem.",
        rooms=("options", "review"),
    ),
    *RUN_ACTIONS,
    # --- everywhere
    Action(name="help", keys="f1,question_mark", label="Help", help="The keys of this room."),
    Action(
        name="show_runs",
        keys="f3",
        label="Runs",
        help="List the runs; leave or open one.",
        footer=False,
    ),
    Action(
        name="toggle_theme", keys="f2", label="Theme", help="Change between the dark and light theme.", footer=False
    ),
    Action(
        name="command_palette",
        keys="ctrl+p",
        label="Palette",
        help="Search all actions by name.",
        footer=False,
        priority=True,
    ),
    Action(
        name="ask_quit",
        keys="ctrl+q",
        label="Quit",
        help="Leave the app. With a run under way it asks: detach, stop or stay.",
        priority=True,
    ),
)


def room_actions(room: str) -> tuple[Action, ...]:
    """The actions that belong to one room."""
    return tuple(action for action in ACTIONS if room in action.rooms)


def global_actions() -> tuple[Action, ...]:
    """The actions that every room has."""
    return tuple(action for action in ACTIONS if not action.rooms)


def bindings_for(actions: tuple[Action, ...]) -> list[Binding]:
    """Textual bindings of some actions; only the first key of each is shown in the footer."""
    return [
        Binding(
            key,
            action.name,
            action.label,
            show=action.footer and index == 0,
            priority=action.priority,
            tooltip=action.help,
            id=action.name if index == 0 else f"{action.name}.{index}",
        )
        for action in actions
        for index, key in enumerate(action.keys.split(","))
    ]
