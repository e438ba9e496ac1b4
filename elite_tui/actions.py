"""Lists every action of the app; key bindings, footer, help page and command palette are generated from this table.

`action_<name>` implements the action `name`, on the screens that the action lists, or on the App if it lists
none. `Binding.id` is the action's name, so a keymap can change any key.
"""

from __future__ import annotations

from textual.binding import Binding

from elite_tui.action import Action
from elite_tui.runs.actions import RUN_ACTIONS

ACTIONS: tuple[Action, ...] = (
    # --- wizard
    Action(
        name="forward",
        keys="ctrl+n",
        label="Continue",
        help="Go to the next screen of the wizard.",
        screens=("project", "hardware", "tiers", "options", "data"),
        priority=True,
    ),
    Action(
        name="start",
        keys="ctrl+s",
        label="Start",
        help="Start the run with the configuration shown.",
        screens=("review",),
        priority=True,
    ),
    Action(
        name="back",
        keys="escape",
        label="Back",
        help="Go to the screen before this one. Nothing typed is lost.",
        screens=("hardware", "tiers", "options", "data", "review"),
    ),
    Action(
        name="rescan",
        keys="f5",
        label="Rescan",
        help="Read the repository, the machine or the list of runs again.",
        screens=("project", "hardware", "tiers", "data", "review", "runs", "compare"),
    ),
    Action(
        name="recommend",
        keys="r",
        label="Best",
        help="Choose the recommended tier, and let the engine keep choosing it.",
        screens=("tiers",),
    ),
    Action(
        name="recent",
        keys="f4",
        label="Recent",
        help="Take up a recent project, or open a recent run.",
        screens=("project",),
    ),
    Action(
        name="leave_recent",
        keys="escape",
        label="Back",
        help="Go from the recent projects and runs back to the form.",
        screens=("project",),
    ),
    Action(
        name="measure",
        keys="f7",
        label="Measure",
        help="Measure this machine's speeds and memory with `engine profile`, or stop measuring.",
        screens=("hardware",),
    ),
    Action(
        name="models",
        keys="f4",
        label="Models",
        help="All models of the catalogue, with what each can do on this machine.",
        screens=("tiers",),
    ),
    Action(
        name="probe",
        keys="p",
        label="Probe",
        help="Run the worst part of this tier's plan here with `engine probe`, measured beside predicted; or stop it.",
        screens=("tiers",),
        footer=False,
    ),
    Action(
        name="what_if",
        keys="w",
        label="What if",
        help="Suppose another card, more GPU memory or more RAM, and see the tiers at once. A run never uses it.",
        screens=("tiers",),
    ),
    Action(
        name="clear_what_if",
        keys="x",
        label="Clear",
        help="Plan for this machine again.",
        screens=("tiers",),
    ),
    Action(
        name="switch",
        keys="space",
        label="Switch",
        help="Switch the optimisation under the cursor on or off; what it conflicts with is said.",
        screens=("options",),
    ),
    Action(
        name="all_fields",
        keys="f4",
        label="Fields",
        help="Change between the optimisations and the form with every field of the configuration.",
        screens=("options",),
        priority=True,  # a tab behind it is one in the form
    ),
    Action(
        name="preset_fastest",
        keys="1",
        label="Fastest",
        help="Preset: everything that makes a step faster and leaves its result as it is.",
        screens=("options",),
        footer=False,
    ),
    Action(
        name="preset_memory",
        keys="2",
        label="Least memory",
        help="Preset: everything that takes less memory, approximate or not.",
        screens=("options",),
        footer=False,
    ),
    Action(
        name="preset_exact",
        keys="3",
        label="Exact only",
        help="Preset: nothing that approximates or disturbs.",
        screens=("options",),
        footer=False,
    ),
    Action(
        name="preset_defaults",
        keys="4",
        label="Defaults",
        help="Preset: every switch back to its default.",
        screens=("options",),
        footer=False,
    ),
    Action(
        name="reset_field",
        keys="f6",
        label="Default",
        help="Set the field or switch under the cursor back to its default.",
        screens=("options",),
        footer=False,
    ),
    Action(
        name="stop_reading",
        keys="f7",
        label="Stop",
        help="Stop reading the repository; what was read so far is kept for the next time.",
        screens=("data",),
    ),
    Action(
        name="next_view",
        keys="f4",
        label="Files",
        help="Change between the checks, config.yaml and deepspeed.json.",
        screens=("review",),
    ),
    Action(
        name="next_problem",
        keys="f8",
        label="Problem",
        help="Go to the next field that has a problem.",
        screens=("options", "review"),
    ),
    *RUN_ACTIONS,
    # --- everywhere
    Action(name="help", keys="f1,question_mark", label="Help", help="The keys of this screen."),
    Action(
        name="show_runs",
        keys="f3",
        label="Runs",
        help="List the runs; leave or open one.",
        footer=False,
    ),
    Action(
        name="toggle_theme",
        keys="f2",
        label="Theme",
        help="Change between the dark, the light and the colour-blind theme.",
        footer=False,
    ),
    Action(
        name="command_palette",
        keys="ctrl+p",
        label="Palette",
        help="Search all actions by name.",
        footer=False,
        priority=True,
    ),
    # With priority, else letters typed behind a tab reach the field before it on a slow terminal.
    Action(
        name="focus_next",
        keys="tab",
        label="Next field",
        help="Go to the next field or list.",
        footer=False,
        priority=True,
    ),
    Action(
        name="focus_previous",
        keys="shift+tab",
        label="Field before",
        help="Go to the field or list before this one.",
        footer=False,
        priority=True,
    ),
    Action(
        name="suspend_process",
        keys="ctrl+z",
        label="Suspend",
        help="Go back to the shell, whose `fg` brings the app back. Runs go on.",
        footer=False,
    ),
    Action(
        name="ask_quit",
        keys="ctrl+q",
        label="Quit",
        help="Leave the app. With a run under way it asks: detach, stop or stay.",
        priority=True,
    ),
)


def screen_actions(screen_name: str) -> tuple[Action, ...]:
    """Returns the actions specific to one screen."""
    return tuple(action for action in ACTIONS if screen_name in action.screens)


def global_actions() -> tuple[Action, ...]:
    """Returns the actions available on every screen."""
    return tuple(action for action in ACTIONS if not action.screens)


def bindings_for(actions: tuple[Action, ...]) -> list[Binding]:
    """Converts actions to Textual bindings; the footer shows only the first key of each."""
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
