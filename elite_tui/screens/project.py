"""Project: what is learnt, by which model, and where the result goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.suggester import SuggestFromList
from textual.widgets import Button, Input, Static

from elite_tui.actions import bindings_for, room_actions
from elite_tui.facts import RepositoryFacts
from elite_tui.figures import bytes_in_words, context_in_words, count_in_words, percent_in_words, printable
from elite_tui.screens.room import RoomScreen
from elite_tui.suggest import FolderSuggester
from elite_tui.widgets.field_row import FieldRow
from elite_tui.widgets.gauge import bar
from engine.config import field_spec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from textual.binding import BindingType
    from textual.widget import Widget

    from engine.models.spec import ModelSpec

LABELS = {
    "data.repositories": "Repository",
    "model.name": "Base model",
    "output.directory": "Output folder",
    "output.model_name": "Name",
}
"The fields of this room. Several repositories are separated by commas."

LANGUAGES_SHOWN = 6


class ProjectScreen(RoomScreen):
    """The first room."""

    ROOM = "project"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings_for(room_actions(ROOM))]
    CSS_PATH = "project.tcss"

    def __init__(self) -> None:
        super().__init__()
        self._models: dict[str, ModelSpec] = {}

    def compose_room(self) -> Iterable[Widget]:
        """The form, and what the repository holds."""
        with Horizontal(id="columns"):
            with VerticalScroll(id="form", can_focus=False):
                yield Static("Fine-tune a code model on your own repository", classes="title", markup=False)
                yield Static(id="pitch", classes="muted", markup=False)
                for path, label in LABELS.items():
                    suggester = FolderSuggester() if path in ("data.repositories", "output.directory") else None
                    yield FieldRow(field_spec(path), self.state.draft, label=label, suggester=suggester)
            with Vertical(id="facts"):
                yield Static(id="repository", markup=False)
        with Horizontal(classes="buttons"):
            yield Button("Continue", id="forward", variant="primary", compact=True)

    def on_mount(self) -> None:
        """The cursor stands in the first field; the catalogue is read after the first frame."""
        super().on_mount()
        self.query_one("#pitch", Static).update("Tell what it should learn; the next rooms work out what fits.")
        self.query_one(FieldRow).control.focus()
        self.call_after_refresh(self._read_models)

    def _read_models(self) -> None:
        self._models = self.elite.link.engine.models()
        row = self.query_one("#field-model-name", FieldRow)
        control = row.control
        if isinstance(control, Input):
            control.suggester = SuggestFromList(list(self._models), case_sensitive=False)
        self.show("draft")

    def show(self, what: str) -> None:
        """Draws problems beside their fields, and the repository's facts."""
        if what not in ("all", "draft", "repository", "tiers", "preflight"):
            return
        problems = self.state.problems()
        for row in self.query(FieldRow):
            note = self._model_note() if row.spec.path == "model.name" else ""
            row.show(problems.get(row.spec.path), note)
        self.query_one("#repository", Static).update(self._repository())

    def _model_note(self) -> str:
        spec = self._models.get(str(self.state.draft.get("model.name")))
        if spec is None:
            return ""
        return (
            f"{count_in_words(spec.parameters)} parameters, {context_in_words(spec.max_context)} context, "
            f"licence {spec.licence}"
        )

    def _repository(self) -> Content:
        repository = self.state.repository
        head = Content.styled("Repository", "bold $primary")
        if repository.loading:
            head = head.append(Content.styled("   reading …", "$muted"))
        if repository.value is None:
            empty = "" if repository.loading or repository.error else "name a folder with source code"
            return head if not empty else Content("\n").join([head, Content.styled(empty, "$muted")])
        return Content("\n").join([head, *repository_lines(repository.value, 34)])

    @on(Button.Pressed, "#forward")
    def _forward_pressed(self) -> None:
        self.action_forward()

    @on(Input.Submitted)
    def _submitted(self) -> None:
        self.app.action_focus_next()

    def action_rescan(self) -> None:
        """Reads the repository again."""
        self.elite.ask_repository()


def repository_lines(facts: RepositoryFacts, width: int) -> list[Content]:
    """Sums, languages with their share, and what was left out."""
    lines = [
        Content.assemble((f"{facts.files:,}", "bold"), f" files · {bytes_in_words(facts.bytes)}"),
        Content.assemble(("≈ ", "$muted"), (count_in_words(facts.tokens), "bold"), " tokens (estimate)"),
        Content(""),
    ]
    shown = facts.languages[:LANGUAGES_SHOWN]
    for share in shown:
        part = share.bytes / facts.bytes if facts.bytes else 0.0
        lines.append(
            Content.assemble(
                f"{printable(share.language):<12.12} ",
                Content.styled(bar(part, width - 26), "$primary on $surface"),
                f" {percent_in_words(part):>4} ",
                (f"{count_in_words(share.files):>6}", "$muted"),
            )
        )
    if len(facts.languages) > len(shown):
        lines.append(Content.styled(f"and {len(facts.languages) - len(shown)} more languages", "$muted"))
    if facts.skipped:
        left_out = ", ".join(f"{count:,} {printable(reason)}" for reason, count in facts.skipped.items())
        lines += [Content(""), Content.styled(f"left out: {left_out}", "$muted")]
    return lines
