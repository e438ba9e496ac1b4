"""Asks for the repositories, the model and the output folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.suggester import SuggestFromList
from textual.widgets import Input, Static

from elite_tui.actions import bindings_for, screen_actions
from elite_tui.format.figures import (
    bytes_in_words,
    context_in_words,
    count_in_words,
    duration_in_words,
    parameters_in_words,
    percent_in_words,
    printable,
)
from elite_tui.format.layout import line_bar
from elite_tui.format.tiers import epoch_seconds, machine_in_words
from elite_tui.screens.app_screen import EVERYTHING, WizardScreen
from elite_tui.state_part import Parts, StatePart
from elite_tui.widgets.field_row import FieldRow
from elite_tui.widgets.recent_list import RecentList
from elite_tui.widgets.text_block import TextBlock
from elite_tui.wizard.draft import PROJECT_FIELDS, text_of
from elite_tui.wizard.facts import LanguageShare, RepositoryFacts
from elite_tui.wizard.recent import remember
from elite_tui.wizard.suggest import FolderSuggester
from engine.config import field_spec
from engine.quantities import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from textual.binding import BindingType
    from textual.widget import Widget

    from elite_tui.screens.app_screen import Elite
    from elite_tui.state import AppState
    from engine.models.spec import ModelSpec

RECENT_DRAWN_FROM = frozenset({StatePart.DRAFT, StatePart.RUNS})
DRAWN_FROM = frozenset({StatePart.DRAFT, StatePart.REPOSITORY, StatePart.MACHINE, StatePart.TIERS, StatePart.PREFLIGHT})
LANGUAGES_SHOWN = 6
WIDEST = 56
"Maximum cells of a language's line."


class ProjectScreen(WizardScreen):
    """First screen of the wizard."""

    ROOM = "project"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings_for(screen_actions(ROOM))]
    CSS_PATH = "project.tcss"

    def __init__(self, elite: Elite) -> None:
        super().__init__(elite)
        self._models: Mapping[str, ModelSpec] = {}

    def compose_body(self) -> Iterable[Widget]:
        """Composes the form and recent projects beside the repository's facts and fitting tiers."""
        with Horizontal(id="columns"):
            with Vertical(id="asked"):
                with VerticalScroll(id="form", can_focus=False):
                    yield Static("Fine-tune a code model on your own repository", classes="title", markup=False)
                    yield TextBlock(id="pitch", classes="muted")
                    for path, label in PROJECT_FIELDS.items():
                        suggester = FolderSuggester() if path in ("data.repositories", "output.directory") else None
                        yield FieldRow(field_spec(path), self.state.draft, label=label, suggester=suggester)
                yield RecentList(id="recent")
            with VerticalScroll(id="facts", can_focus=False):
                yield TextBlock(id="repository")
                yield TextBlock(id="fits")
        yield self.steps(back=False)

    def enter(self) -> None:
        """Focuses the first field; loads the catalogue after the first frame."""
        self.query_one("#pitch", TextBlock).update("Choose what to train on; the next screens plan it.")
        self.query_one(FieldRow).control.focus()
        self.call_after_refresh(self._read_models)

    def _read_models(self) -> None:
        self._models = self.elite.controller.models()
        row = self.query_one("#field-model-name", FieldRow)
        control = row.control
        if isinstance(control, Input):
            control.suggester = SuggestFromList(list(self._models), case_sensitive=False)
        self.show({StatePart.DRAFT})

    def show(self, changed: Parts) -> None:
        """Draws problems beside their fields, and the repository's facts."""
        if not changed.isdisjoint(RECENT_DRAWN_FROM):
            self.query_one(RecentList).show(self.state.draft, self.state.runs)
        if changed.isdisjoint(DRAWN_FROM):
            return
        problems = self.state.problems()
        for row in self.query(FieldRow):
            note = self._model_note() if row.spec.path == "model.name" else ""
            row.show(problems.get(row.spec.path), note)
        width = max(30, self.query_one("#facts").content_size.width - 1)
        self.query_one("#repository", TextBlock).update(self._repository(width))
        self.query_one("#fits", TextBlock).update(what_fits(self.state))

    def _model_note(self) -> str:
        spec = self._models.get(str(self.state.draft.get("model.name")))
        if spec is None:
            return ""
        return (
            f"{parameters_in_words(spec.parameters)} parameters, {context_in_words(spec.max_context)} context, "
            f"licence {spec.licence}"
        )

    def _repository(self, width: int) -> Content:
        repository = self.state.repository
        head = Content.styled("Repository", "bold $primary")
        if repository.loading:
            head = head.append(Content.styled("   reading …", "$muted"))
        if repository.value is None:
            empty = "not read: see above" if repository.error else "name a folder with source code"
            return head if repository.loading else Content("\n").join([head, Content.styled(empty, "$muted")])
        return Content("\n").join(
            [head, *repository_lines(repository.value, min(width, WIDEST), bars=not self.has_class("-low"))]
        )

    @on(Input.Submitted)
    def _submitted(self) -> None:
        self.app.action_focus_next()

    @on(RecentList.ProjectChosen)
    def _project_chosen(self, message: RecentList.ProjectChosen) -> None:
        row = self.query_one("#field-data-repositories", FieldRow)
        row.set_text(text_of(message.repositories))
        self.action_leave_recent()

    @on(RecentList.RunChosen)
    def _run_chosen(self, message: RecentList.RunChosen) -> None:
        self.elite.run_desk.open([message.reference])

    def action_forward(self) -> None:
        """Saves the project as recent and moves to the next screen."""
        if self.state.repository.value is not None:
            remember(self.state.draft)
            self.elite.drafting.save_soon()
        super().action_forward()

    def action_recent(self) -> None:
        """Focuses the list of recent projects and runs; on a small terminal, it replaces the facts."""
        if self.has_class("-recent"):
            self.action_leave_recent()
        else:
            self.add_class("-recent")
            self.query_one(RecentList).focus()
            self.refresh_bindings()

    def action_leave_recent(self) -> None:
        """Shows the facts again and focuses the form."""
        self.remove_class("-recent")
        self.query_one(FieldRow).control.focus()
        self.refresh_bindings()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002
        """Allows leaving only the list of recent projects and runs."""
        return action != "leave_recent" or self.has_class("-recent")

    def action_rescan(self) -> None:
        """Reads the repository and the list of runs again."""
        self.elite.controller.ask_repository()
        self.elite.run_desk.ask_runs()

    def on_resize(self) -> None:
        """Lays out for the new width."""
        self.call_after_refresh(self.show, EVERYTHING)


def repository_lines(facts: RepositoryFacts, width: int, *, bars: bool = True) -> list[Content]:
    """Formats totals, languages by share with a bar each or as one line, and skipped files."""
    how = " · listed by git" if facts.listed_by and set(facts.listed_by) == {"git"} else ""
    lines = [
        Content.assemble((counted(facts.files, "file"), "bold"), f" · {bytes_in_words(facts.bytes)}", (how, "$muted")),
        Content.assemble(("≈ ", "$muted"), (count_in_words(facts.tokens), "bold"), " tokens (estimate)"),
    ]
    if bars:
        lines += _language_bars(facts, width)
    else:
        named = [
            f"{printable(share.language)} {percent_in_words(_part(share, facts))}" for share in facts.languages[:2]
        ]
        others = len(facts.languages) - len(named)
        lines.append(Content(", ".join([*named, *([counted(others, "other")] if others else [])])))
    if facts.skipped:
        left_out = ", ".join(f"{count:,} {printable(reason)}" for reason, count in facts.skipped.items())
        lines += [*([Content("")] if bars else []), Content.styled(f"left out: {left_out}", "$muted")]
    return lines


def _part(share: LanguageShare, facts: RepositoryFacts) -> float:
    return share.bytes / facts.bytes if facts.bytes else 0.0


def _language_bars(facts: RepositoryFacts, width: int) -> list[Content]:
    lines = [Content("")]
    shown = facts.languages[:LANGUAGES_SHOWN]
    for share in shown:
        part = _part(share, facts)
        lines.append(
            Content.assemble(
                f"{printable(share.language):<12.12} ",
                Content.styled(line_bar(part, width - 26), "$primary"),
                f" {percent_in_words(part):>4} ",
                (f"{count_in_words(share.files):>6}", "$muted"),
            )
        )
    if len(facts.languages) > len(shown):
        lines.append(Content.styled(f"and {counted(len(facts.languages) - len(shown), 'more language')}", "$muted"))
    return lines


def what_fits(state: AppState) -> Content:
    """Formats the tier for this repository on this machine, or the reason why none fits."""
    lines = [Content(""), Content.styled("What fits", "bold $primary")]
    plans = state.tiers.value
    if plans is None:
        machine = state.machine
        words = (
            "looking at the machine …" if machine.loading else "planning …" if state.tiers.loading else "not known yet"
        )
        lines.append(Content.styled(words, "$muted"))
    elif plans.choice is None:
        lines.append(Content.styled(machine_in_words(plans), "$muted"))
        lines.append(Content.assemble(("✗ ", "$text-error"), printable(str(plans.refusal))))
    else:
        plan = plans.choice.plan
        name = f"tier {plan.tier}" if plan.tier is not None else "below tier 1"
        holds = "the whole repository" if plan.holds_repository else plan.sees or "a part of a file"
        lines.append(Content.styled(machine_in_words(plans), "$muted"))
        lines.append(
            Content.assemble((f"{name}, {context_in_words(plan.context)} tokens", "bold"), f": a window holds {holds}")
        )
        seconds, schedule = epoch_seconds(plan), plans.choice.schedule
        if schedule is not None:
            first, whole = schedule.stages[0].context, duration_in_words(plans.choice.seconds)
            grow = (
                f"windows grow to it from {context_in_words(first)}"
                if len(schedule.stages) > 1
                else "all windows are alike"
            )
            words = f"{grow}; the run takes about {whole} "
            lines.append(Content.assemble(words, ("(predicted)", "$muted")))
        elif seconds is None:
            lines.append(Content.styled("how long an epoch takes is told once the repository is read", "$muted"))
        else:
            words = f"an epoch takes about {duration_in_words(seconds)} "
            lines.append(Content.assemble(words, ("(predicted)", "$muted")))
    return Content("\n").join(lines)
