"""Lists the actions of the run screens: monitor, result, list and comparison."""

from __future__ import annotations

from elite_tui.action import Action

CHART_SCREENS = ("monitor", "compare")

RUN_ACTIONS: tuple[Action, ...] = (
    # --- a run
    Action(
        name="pause",
        keys="p",
        label="Pause",
        help="Hold the run after the present tile or step; it keeps its memory.",
        screens=("monitor",),
    ),
    Action(
        name="resume",
        keys="r",
        label="Resume",
        help="Let a paused run go on; resume a stopped, failed or died one from its last checkpoint.",
        screens=("monitor", "result", "runs"),
    ),
    Action(
        name="save_now",
        keys="w",
        label="Save now",
        help="Write a checkpoint after the present step.",
        screens=("monitor",),
    ),
    Action(
        name="evaluate_now",
        keys="e",
        label="Score",
        help="Score the held-out files after the present step.",
        screens=("monitor",),
    ),
    Action(
        name="stop",
        keys="s",
        label="Stop",
        help="End the run, with a checkpoint to resume from. Asks first.",
        screens=("monitor",),
    ),
    Action(
        name="detach",
        keys="d",
        label="Detach",
        help="Leave the app; the run goes on, and `elite-tui monitor` finds it again.",
        screens=("monitor",),
    ),
    Action(
        name="show_result",
        keys="enter",
        label="Result",
        help="What the run achieved, and what to do with it.",
        screens=("monitor",),
    ),
    # --- views of the monitor
    Action(
        name="show_loss", keys="1", label="Loss", help="Training and held-out loss.", screens=("monitor",), footer=False
    ),
    Action(name="show_rate", keys="2", label="Rate", help="The learning rate.", screens=("monitor",), footer=False),
    Action(
        name="show_gradient", keys="3", label="Gradient", help="The gradient norm.", screens=("monitor",), footer=False
    ),
    Action(name="show_speed", keys="4", label="Speed", help="Tokens a second.", screens=("monitor",), footer=False),
    Action(
        name="show_gpu", keys="5", label="GPU", help="GPU memory against the plan.", screens=("monitor",), footer=False
    ),
    Action(name="show_ram", keys="6", label="RAM", help="RAM against the plan.", screens=("monitor",), footer=False),
    Action(
        name="toggle_grid",
        keys="g",
        label="All charts",
        help="Show all charts together, and back. Their digits show one of them large.",
        screens=("monitor",),
        footer=False,
    ),
    Action(
        name="zoom_in",
        keys="plus,equals_sign",
        label="Zoom in",
        help="Show fewer of the latest steps. The mouse wheel zooms at the pointer.",
        screens=CHART_SCREENS,
        footer=False,
    ),
    Action(
        name="zoom_out", keys="minus", label="Zoom out", help="Show more steps.", screens=CHART_SCREENS, footer=False
    ),
    Action(
        name="pan_left",
        keys="left",
        label="Earlier",
        help="Move to earlier steps.",
        screens=CHART_SCREENS,
        footer=False,
    ),
    Action(
        name="pan_right", keys="right", label="Later", help="Move to later steps.", screens=CHART_SCREENS, footer=False
    ),
    Action(
        name="whole", keys="0", label="Whole", help="Show the whole run again.", screens=CHART_SCREENS, footer=False
    ),
    Action(
        name="smoother",
        keys="right_square_bracket",
        label="Smoother",
        help="Smooth the curves more; after the most, not at all.",
        screens=CHART_SCREENS,
        footer=False,
    ),
    Action(
        name="rougher",
        keys="left_square_bracket",
        label="Rougher",
        help="Smooth the curves less.",
        screens=CHART_SCREENS,
        footer=False,
    ),
    Action(
        name="log_axis",
        keys="y",
        label="Log axis",
        help="Make equal distances equal factors, and back.",
        screens=CHART_SCREENS,
        footer=False,
    ),
    Action(
        name="x_axis",
        keys="x",
        label="X axis",
        help="Draw over steps, tokens or time.",
        screens=CHART_SCREENS,
        footer=False,
    ),
    Action(
        name="toggle_pane",
        keys="l",
        label="Log/events",
        help="Change between the log and the list of events.",
        screens=("monitor",),
        footer=False,
    ),
    Action(
        name="search",
        keys="slash",
        label="Search",
        help="Show only log lines that hold a text.",
        screens=("monitor",),
        footer=False,
    ),
    Action(
        name="end_search",
        keys="escape",
        label="All lines",
        help="End the search in the log.",
        screens=("monitor",),
        footer=False,
    ),
    Action(
        name="level",
        keys="v",
        label="Level",
        help="Show only log lines of a level and above.",
        screens=("monitor",),
        footer=False,
    ),
    Action(
        name="next_run", keys="full_stop", label="Next run", help="The next tab.", screens=("monitor",), footer=False
    ),
    Action(
        name="previous_run",
        keys="comma",
        label="Previous run",
        help="The tab before.",
        screens=("monitor",),
        footer=False,
    ),
    Action(
        name="close_run",
        keys="k",
        label="Close tab",
        help="Stop watching this run here; the run goes on.",
        screens=("monitor",),
        footer=False,
    ),
    Action(
        name="show_monitor",
        keys="m,escape",
        label="Monitor",
        help="Back to the run's charts and log.",
        screens=("result",),
    ),
    Action(
        name="export",
        keys="x",
        label="Export",
        help="Write the result as an adapter, a merged model, or a GGUF file for llama.cpp and Ollama.",
        screens=("result",),
    ),
    Action(
        name="show_generate",
        keys="g",
        label="Try it",
        help="Try the base model and the fine-tuned one on a prompt, side by side.",
        screens=("result",),
    ),
    Action(
        name="copy_command",
        keys="c",
        label="Copy",
        help="Copy the command that puts the result to use, through the terminal, also over SSH.",
        screens=("result",),
    ),
    Action(
        name="more_functions",
        keys="f",
        label="Functions",
        help="Show the next functions that both models completed.",
        screens=("result",),
    ),
    Action(
        name="write",
        keys="f5",
        label="Write",
        help="Let both models go on with the prompt; the first time they are loaded.",
        screens=("generate",),
        priority=True,
    ),
    Action(
        name="stop_writing",
        keys="f7",
        label="Stop",
        help="End the answer under way.",
        screens=("generate",),
        priority=True,  # the editor has keys of its own
    ),
    Action(
        name="leave_generation",
        keys="escape",
        label="Result",
        help="Back to the result; the models leave memory.",
        screens=("generate",),
    ),
    Action(
        name="new_run",
        keys="n",
        label="New run",
        help="Back to the first screen, with everything as it was.",
        screens=("result", "runs"),
    ),
    Action(
        name="open_run",
        keys="enter",
        label="Open",
        help="Watch the run under the cursor, live or finished, in a tab of the monitor.",
        screens=("runs",),
    ),
    Action(
        name="mark_run",
        keys="space",
        label="Mark",
        help="Mark the run under the cursor to compare it.",
        screens=("runs",),
    ),
    Action(
        name="compare_runs", keys="c", label="Compare", help="Show the marked runs side by side.", screens=("runs",)
    ),
    Action(
        name="delete_run",
        keys="delete",
        label="Delete",
        help="Delete the run under the cursor with its checkpoints, once its name is typed. Never one that trains.",
        screens=("runs",),
    ),
    Action(
        name="filter_runs",
        keys="slash",
        label="Filter",
        help="Show only runs whose name, model or status hold a text.",
        screens=("runs",),
    ),
    Action(
        name="end_filter", keys="escape", label="Back", help="End the filter; without one, go back.", screens=("runs",)
    ),
    Action(
        name="sort_runs",
        keys="o",
        label="Sort",
        help="Sort by the next column. A click on a heading sorts by it, another one reverses it.",
        screens=("runs",),
    ),
    Action(name="turn_sort", keys="O", label="Reverse", help="Reverse the order.", screens=("runs",), footer=False),
    Action(
        name="leave_comparison",
        keys="escape",
        label="Runs",
        help="Back to the list of runs.",
        screens=("compare",),
    ),
)
