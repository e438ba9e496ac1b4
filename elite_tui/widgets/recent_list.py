"""Lists recent projects and runs; enter opens one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.content import Content
from textual.message import Message
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from elite_tui.wizard.recent import RUNS_SHOWN, project_line, projects, run_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from elite_tui.remote_data import RemoteData
    from elite_tui.wizard.draft import Draft
    from engine.runs.run_summary import RunSummary

_MARGIN = 2


class RecentList(OptionList):
    """The list. Its headings cannot be selected."""

    class ProjectChosen(Message):
        """The user chose a project, whose repositories the draft takes over."""

        def __init__(self, repositories: list[str]) -> None:
            super().__init__()
            self.repositories = repositories

    class RunChosen(Message):
        """The user chose a run to open."""

        def __init__(self, reference: str) -> None:
            super().__init__()
            self.reference = reference

    def __init__(self, *, id: str) -> None:  # noqa: A002
        super().__init__(id=id, markup=False)
        self._projects: list[list[str]] = []
        self._shown: tuple[object, ...] = ()
        self._drawn_from: tuple[Draft, RemoteData[Sequence[RunSummary]]] | None = None

    def show(self, draft: Draft, listed: RemoteData[Sequence[RunSummary]]) -> None:
        """Redraws the list if it changed."""
        self._drawn_from = draft, listed
        width = max(24, self.size.width - _MARGIN)
        found, runs = projects(draft), list(listed.value or ())[:RUNS_SHOWN]
        shown = (repr(found), tuple(runs), width, listed.loading)
        if shown == self._shown:
            return
        self._shown, self._projects = shown, found
        options = [Option(Content.styled("Recent projects", "bold $primary"), disabled=True)]
        options += [Option(project_line(project, width), id=f"project-{index}") for index, project in enumerate(found)]
        if not found:
            options.append(Option(Content.styled("none yet", "$muted"), disabled=True))
        options += [Option("", disabled=True), Option(Content.styled("Recent runs", "bold $primary"), disabled=True)]
        options += [Option(run_line(run, width), id=f"run-{run.path}") for run in runs]
        if not runs:
            words = "looking …" if listed.loading else "none yet"
            options.append(Option(Content.styled(words, "$muted"), disabled=True))
        self.clear_options()
        self.add_options(options)

    def on_resize(self) -> None:
        """Fits the lines to the width, which a hidden list does not have."""
        if self._drawn_from is not None:
            self.show(*self._drawn_from)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Posts the choice."""
        event.stop()
        kind, _, name = (event.option_id or "").partition("-")
        if kind == "project":
            self.post_message(self.ProjectChosen(self._projects[int(name)]))
        elif kind == "run":
            self.post_message(self.RunChosen(name))
