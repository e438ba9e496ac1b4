"""Shows the final configuration and the pre-flight checks, and starts the run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, ClassVar, Literal

from textual import on
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.widgets import Button, Select, Static

from elite_tui.actions import bindings_for, screen_actions
from elite_tui.format.figures import context_in_words, count_in_words, duration_in_words, printable
from elite_tui.screens.app_screen import WizardScreen
from elite_tui.state_part import Parts, StatePart
from elite_tui.widgets.choice_field import ChoiceField
from elite_tui.widgets.text_block import TextBlock
from elite_tui.wizard.checks import in_words, verdict
from elite_tui.wizard.draft import PROJECT_FIELDS
from engine import config
from engine.quantities import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from textual.binding import BindingType
    from textual.widget import Widget

    from elite_tui.state import AppState


VIEWS = {"checks": "Checks", "yaml": "config.yaml", "deepspeed": "deepspeed.json"}
VIEW = "review.view"
HOURS = (("as long as it takes", ""), ("an hour", "1"), ("overnight, 10 hours", "10"), ("a weekend, 60 hours", "60"))
"""How long a run may take, and the value of training.hours."""
DRAWN_FROM = frozenset({StatePart.DRAFT, StatePart.REPOSITORY, StatePart.TIERS, StatePart.PREFLIGHT, StatePart.CHECKS})


class ReviewScreen(WizardScreen):
    """Last screen before the run."""

    ROOM = "review"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings_for(screen_actions(ROOM))]
    CSS_PATH = "review.tcss"

    def compose_body(self) -> Iterable[Widget]:
        """Composes the verdict and cost, the pre-flight rows beside the run's files, and the start button."""
        open_view = view_of(self.state)
        self.set_class(True, f"-{open_view}", update=False)
        yield TextBlock(id="verdict")
        yield TextBlock(id="cost")
        with Horizontal(id="views"):
            for view, label in VIEWS.items():
                variant: Literal["primary", "default"] = "primary" if view == open_view else "default"
                yield Button(label, id=f"view-{view}", compact=True, variant=variant)
            yield Static("Time", classes="label", markup=False)
            yield hours_select(self.state.draft.get("training.hours"))
        with Horizontal(id="split"):
            with VerticalScroll(id="checks", can_focus=True):
                yield TextBlock(id="rows")
            with VerticalScroll(id="yaml", classes="file", can_focus=True):
                yield TextBlock(id="text")
            with VerticalScroll(id="deepspeed", classes="file", can_focus=True):
                yield TextBlock(id="deepspeed-text")
        with Horizontal(classes="buttons"):
            yield Button("Back", id="back", compact=True)
            yield Button("Start training", id="start", variant="primary", compact=True, disabled=True)

    def enter(self) -> None:
        """Runs the checks on entry, unless nothing has changed since the last ones."""
        self.query_one(f"#{view_of(self.state)}").focus()
        self.elite.controller.ask_preflight()
        if not (self.state.checks.done or self.state.checks.running):
            self.elite.controller.examine()

    def show(self, changed: Parts) -> None:
        """Draws the verdict, the cost, the rows and the files, with problems in place."""
        if changed.isdisjoint(DRAWN_FROM):
            return
        state = self.state
        problems = state.problems()
        self.query_one("#verdict", TextBlock).update(self._verdict(len(problems)))
        self.query_one("#cost", TextBlock).update(cost(state))
        width = self.query_one("#checks").content_size.width or self.size.width - 4
        rows = in_words(state.checks, max(30, width - 1))
        if state.simulated is not None:
            words = f"Checks of this machine; the plan is {printable(state.simulated)}'s."
            rows = Content("\n").join([Content.styled(words, "$text-warning"), rows])
        self.query_one("#rows", TextBlock).update(rows)
        if changed != {StatePart.CHECKS}:
            self._show_files(problems)
        ready = self._ready
        start = self.query_one("#start", Button)
        if start.disabled and ready:
            start.disabled = False
            start.focus()
        start.disabled = not ready
        start.label = "Starting …" if state.launching else "Start training"
        self.refresh_bindings()

    _files_of: tuple[object, ...] = ()
    "What the files on screen were made of."

    def _show_files(self, problems: Mapping[str, config.Problem]) -> None:
        """Writes the files that are on screen, if what they are made of has changed."""
        state = self.state
        plans = state.tiers.value
        deepspeed = self.has_class("-deepspeed")
        made_of = (repr(state.draft.mapping()), state.preflight.value, plans and plans.choice, problems, deepspeed)
        if made_of == self._files_of:
            return
        self._files_of = made_of
        if deepspeed:
            self.query_one("#deepspeed-text", TextBlock).update(Content(deepspeed_text(state)))
        else:
            self.query_one("#text", TextBlock).update(annotated_yaml(yaml_text(state), problems))

    @property
    def _ready(self) -> bool:
        state = self.state
        passed = state.preflight.value is not None and not state.problems() and not state.checks.failed
        return passed and not state.launching and state.simulated is None

    def _open(self, view: str) -> None:
        """Shows one view; with enough width, the rows stay beside the files."""
        for name in VIEWS:
            self.set_class(name == view, f"-{name}")
            self.query_one(f"#view-{name}", Button).variant = "primary" if name == view else "default"
        self.state.draft.keep(VIEW, "" if view == "checks" else view)
        self.query_one(f"#{view}").focus()
        self.call_after_refresh(self.show, {StatePart.DRAFT})

    def action_next_view(self) -> None:
        """Switches between the checks and the files."""
        names = list(VIEWS)
        here = next((index for index, name in enumerate(names) if self.has_class(f"-{name}")), 0)
        self._open(names[(here + 1) % len(names)])

    @on(Select.Changed, "#hours")
    def _hours_chosen(self, event: Select.Changed) -> None:
        """Makes the schedule for other hours; the checks run again."""
        event.stop()
        before = self.state.draft.get("training.hours")
        self.elite.drafting.edit("training.hours", str(event.value))
        if self.state.draft.get("training.hours") != before:
            self.elite.controller.ask_preflight()
            self.elite.controller.examine()

    @on(Button.Pressed, "#views Button")
    def _view_pressed(self, event: Button.Pressed) -> None:
        self._open((event.button.id or "").removeprefix("view-"))

    def on_resize(self) -> None:
        """Wraps the text to the new width."""
        self.call_after_refresh(self.show, {StatePart.CHECKS})

    def _verdict(self, problems: int) -> Content:
        state = self.state
        if state.launching:
            return Content.styled("starting the training process …", "$text-accent bold")
        error = state.preflight.error
        if error is not None and not error.field:
            return Content.assemble(("✗ ", "$text-error"), error.message, (f"; {error.remedy}", "$muted"))
        if problems:
            return Content.assemble(
                (f"✗ {counted(problems, 'problem')} to fix", "$text-error bold"),
                ("   f8 goes to the field", "$muted"),
            )
        if failed := state.checks.failed:
            words = f"✗ {counted(len(failed), 'check')} failed: {failed[0].name}"
            return Content.assemble((words, "$text-error bold"), "   ", verdict(state.checks))
        if state.simulated is not None:
            return Content.assemble(
                ("! a plan only", "$text-warning bold"),
                f"   {printable(state.simulated)} is simulated: start without --simulate to train on what is here",
            )
        if state.preflight.loading or state.preflight.value is None:
            return Content.styled("checking the repository, the output folder and the model …", "$muted")
        if state.checks.error is not None:
            return Content.assemble(
                ("! not examined", "$text-warning bold"), f"   {printable(str(state.checks.error))}"
            )
        if not state.checks.done:
            return Content.assemble(verdict(state.checks), ("   a start now leaves out the rest", "$muted"))
        return Content.assemble(("✓ ready to start", "$text-success bold"), "   ", verdict(state.checks))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002
        """Allows the start only after passed checks."""
        if action == "start":
            return self._ready
        return True

    def action_start(self) -> None:
        """Launches the run; the monitor opens once its process exists."""
        self.elite.run_desk.launch()

    def action_rescan(self) -> None:
        """Runs the checks again."""
        self.elite.controller.ask_repository()
        self.elite.controller.ask_preflight()
        self.elite.controller.examine()

    def action_next_problem(self) -> None:
        """Switches to the screen of the first problem."""
        problems = self.state.problems()
        if problems:
            path = next(iter(problems))
            self.elite.go("project" if path in PROJECT_FIELDS else "options")

    @on(Button.Pressed, "#start")
    def _start_pressed(self) -> None:
        self.action_start()


def view_of(state: AppState) -> str:
    """Returns the view that was open last."""
    view = state.draft.kept(VIEW)
    return view if view in VIEWS else "checks"


def hours_select(hours: object) -> Select[str]:
    """Makes the choice of how long the run may take, with the draft's own hours among it."""
    options = list(HOURS)
    chosen = "" if hours is None else f"{hours:g}" if isinstance(hours, (int, float)) else str(hours)
    if chosen not in [value for _, value in options]:
        options.append((f"{printable(chosen)} hours", chosen))
    return ChoiceField(options, value=chosen, allow_blank=False, compact=True, id="hours")


def yaml_text(state: AppState) -> str:
    """Returns the YAML of the checked configuration, or of the draft's valid fields."""
    if state.preflight.value is not None:
        return config.to_yaml(state.preflight.value)
    mapping = state.draft.mapping()
    wrong = state.draft.problems()
    valid = {
        section: {name: value for name, value in fields.items() if f"{section}.{name}" not in wrong}
        for section, fields in mapping.items()
    }
    return config.to_yaml(config.from_mapping(valid, source="form"))


def deepspeed_text(state: AppState) -> str:
    """Returns the run's deepspeed.json, or a hint if the draft is invalid."""
    from engine.runs.deepspeed_config import deepspeed_config

    if state.draft.problems():
        return "correct the configuration first"
    plans = state.tiers.value
    run = config.from_mapping(state.draft.mapping(), source="form")
    if plans is None or plans.choice is None:
        return json.dumps(deepspeed_config(run), indent=2)
    return json.dumps(deepspeed_config(plans.choice.rated(run), plans.choice.context), indent=2)


def annotated_yaml(text: str, problems: Mapping[str, config.Problem]) -> Content:
    """Formats YAML with dimmed comments and each problem below its field's line."""
    lines: list[Content] = []
    section = ""
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            lines.append(Content.styled(printable(line), "$muted"))
            continue
        if line and not line.startswith(" "):
            section = line.rstrip(":")
            lines.append(Content.styled(printable(line), "bold $primary"))
            continue
        name, colon, value = line.partition(":")
        lines.append(Content.assemble((name + colon, "$text-primary"), printable(value)))
        problem = problems.get(f"{section}.{name.strip()}")
        if problem is not None:
            lines.append(
                Content.assemble(
                    ("  ✗ ", "$text-error bold"),
                    (printable(problem.problem), "$text-error"),
                    f"; {printable(problem.remedy)}",
                )
            )
    return Content("\n").join(lines)


def cost(state: AppState) -> Content:
    """Formats the predicted cost of the run."""
    plans = state.tiers.value
    if plans is None or plans.choice is None or state.repository.value is None:
        return Content.styled("cost: n/a until the repository is read and a plan fits", "$muted")
    choice = plans.choice
    if choice.schedule is not None:
        stages = ", then ".join(
            f"{count_in_words(stage.updates)} on {context_in_words(stage.context)}" for stage in choice.schedule.stages
        )
        return Content.assemble(
            (f"updates: {stages} tokens a window", "bold"),
            f" · about {duration_in_words(choice.seconds)} in all",
            (" (predicted)", "$muted"),
        )
    row, steps = choice.plan, choice.updates
    return Content.assemble(
        (f"{context_in_words(row.context)} tokens a window", "bold"),
        f" · {count_in_words(steps)} step{'' if steps == 1 else 's'} of about {duration_in_words(row.step_seconds)}"
        f" · about {duration_in_words(choice.seconds)} in all",
        (" (predicted)", "$muted"),
    )
