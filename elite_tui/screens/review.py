"""Review: the configuration that will be used, the checks before the start, and the start."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.widgets import Button, Static

from elite_tui.actions import bindings_for, room_actions
from elite_tui.figures import context_in_words, count_in_words, duration_in_words, printable
from elite_tui.screens.project import LABELS as PROJECT_FIELDS
from elite_tui.screens.room import RoomScreen
from engine import config

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from textual.binding import BindingType
    from textual.widget import Widget

    from elite_tui.state import AppState


class ReviewScreen(RoomScreen):
    """The last room before the run."""

    ROOM = "review"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings_for(room_actions(ROOM))]
    CSS_PATH = "review.tcss"

    def compose_room(self) -> Iterable[Widget]:
        """Verdict and cost, the YAML, the start."""
        yield Static(id="verdict", markup=False)
        yield Static(id="cost", markup=False)
        with VerticalScroll(id="yaml", can_focus=True):
            yield Static(id="text", markup=False)
        with Horizontal(classes="buttons"):
            yield Button("Back", id="back", compact=True)
            yield Button("Start training", id="start", variant="primary", compact=True, disabled=True)

    def on_mount(self) -> None:
        """The checks run on entering."""
        super().on_mount()
        self.query_one("#yaml").focus()
        self.elite.ask_preflight()

    def show(self, what: str) -> None:
        """Draws the verdict, the cost and the YAML with problems in their places."""
        if what not in ("all", "draft", "repository", "tiers", "preflight"):
            return
        state = self.state
        problems = state.problems()
        self.query_one("#verdict", Static).update(self._verdict(len(problems)))
        self.query_one("#cost", Static).update(cost(state))
        self.query_one("#text", Static).update(annotated_yaml(yaml_text(state), problems))
        ready = state.preflight.value is not None and not problems and not state.launching
        start = self.query_one("#start", Button)
        if start.disabled and ready:
            start.disabled = False
            start.focus()
        start.disabled = not ready
        start.label = "Starting …" if state.launching else "Start training"
        self.refresh_bindings()

    def _verdict(self, problems: int) -> Content:
        state = self.state
        if state.launching:
            return Content.styled("starting the training process …", "$text-accent bold")
        error = state.preflight.error
        if error is not None and not error.field:
            return Content.assemble(("✗ ", "$text-error"), error.message, (f"; {error.remedy}", "$muted"))
        if problems:
            return Content.assemble(
                (f"✗ {problems} to correct before the start", "$text-error bold"),
                ("   f8 goes to the field", "$muted"),
            )
        if state.preflight.loading or state.preflight.value is None:
            return Content.styled("checking the repository, the output folder and the model …", "$muted")
        return Content.styled("✓ ready to start", "$text-success bold")

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002
        """Start is offered when the checks passed."""
        if action == "start":
            return self.state.preflight.value is not None and not self.state.problems() and not self.state.launching
        return True

    def action_start(self) -> None:
        """Launches the run; the monitor opens when its process is there."""
        self.elite.launch()

    def action_rescan(self) -> None:
        """Checks again."""
        self.elite.ask_repository()
        self.elite.ask_preflight()

    def action_next_problem(self) -> None:
        """To the room of the first problem."""
        problems = self.state.problems()
        if problems:
            path = next(iter(problems))
            self.elite.go("project" if path in PROJECT_FIELDS else "options")

    @on(Button.Pressed, "#start")
    def _start_pressed(self) -> None:
        self.action_start()

    @on(Button.Pressed, "#back")
    def _back_pressed(self) -> None:
        self.action_back()


def yaml_text(state: AppState) -> str:
    """The YAML of the checked configuration, or of the draft with its problems."""
    if state.preflight.value is not None:
        return config.to_yaml(state.preflight.value)
    mapping = state.draft.mapping()
    wrong = state.draft.problems()
    valid = {
        section: {name: value for name, value in fields.items() if f"{section}.{name}" not in wrong}
        for section, fields in mapping.items()
    }
    return config.to_yaml(config.from_mapping(valid, source="form"))


def annotated_yaml(text: str, problems: Mapping[str, config.Problem]) -> Content:
    """YAML with its comments dimmed, and each problem below its field's line."""
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
    """What the run will take, as the plan predicts it."""
    plans = state.tiers.value
    if plans is None or plans.choice is None or state.repository.value is None:
        return Content.styled("cost: n/a until the repository is read and a plan fits", "$muted")
    row = plans.choice.plan
    epochs, max_steps = state.draft.get("training.epochs"), state.draft.get("training.max_steps")
    steps: float | None = None
    if row.steps_per_epoch is not None and isinstance(epochs, (int, float)):
        steps = max(1, round(row.steps_per_epoch * epochs))
    if isinstance(max_steps, int):
        steps = max_steps if steps is None else min(steps, max_steps)
    seconds = steps * row.step_seconds if steps is not None else None
    return Content.assemble(
        (f"{context_in_words(row.context)} tokens a window", "bold"),
        f" · {count_in_words(steps)} steps of about {duration_in_words(row.step_seconds)}"
        f" · about {duration_in_words(seconds)} in all",
        (" (predicted)", "$muted"),
    )
