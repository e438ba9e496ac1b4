"""RecentList: the projects and runs of the last days; enter takes one up again."""

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
    """The list. Its headings cannot be entered."""

    class ProjectChosen(Message):
        """A project's repositories are to be the draft's."""

        def __init__(self, repositories: list[str]) -> None:
            super().__init__()
            self.repositories = repositories

    class RunChosen(Message):
        """A run is to be opened."""

        def __init__(self, reference: str) -> None:
            super().__init__()
            self.reference = reference

    def __init__(self, *, id: str) -> None:  # noqa: A002
        super().__init__(id=id, markup=False)
        self._projects: list[list[str]] = []
        self._shown: tuple[object, ...] = ()

    def show(self, draft: Draft, listed: RemoteData[Sequence[RunSummary]]) -> None:
        """Draws what is known, if it changed."""
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

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Says what was chosen."""
        event.stop()
        kind, _, name = (event.option_id or "").partition("-")
        if kind == "project":
            self.post_message(self.ProjectChosen(self._projects[int(name)]))
        elif kind == "run":
            self.post_message(self.RunChosen(name))
