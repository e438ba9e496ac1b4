"""Keeps recent projects, the repositories last taken through the wizard, in the draft file."""

from __future__ import annotations

import json
import time
from pathlib import PurePath
from typing import TYPE_CHECKING

from textual.content import Content

from elite_tui.format.figures import number_in_words, printable

if TYPE_CHECKING:
    from elite_tui.wizard.draft import Draft
    from engine.runs.run_summary import RunSummary

KEY = "recent-projects"
KEPT = 8
RUNS_SHOWN = 8

RUN_MARKS = {
    "completed": ("✓", "$text-success"),
    "failed": ("✗", "$text-error"),
    "died": ("✗", "$text-error"),
    "stopped": ("■", "$muted"),
}
ACTIVE_MARK = ("●", "$text-accent")


def projects(draft: Draft) -> list[list[str]]:
    """Returns the repositories of each project, newest first."""
    try:
        found = json.loads(draft.kept(KEY) or "[]")
    except ValueError:
        return []
    kept = [entry for entry in found if isinstance(entry, list)] if isinstance(found, list) else []
    return [entry for entry in kept if entry and all(isinstance(path, str) and path for path in entry)]


def remember(draft: Draft) -> None:
    """Makes the draft's repositories the newest project."""
    present = draft.get("data.repositories")
    if not isinstance(present, list) or not present:
        return
    others = [project for project in projects(draft) if project != present]
    draft.keep(KEY, json.dumps([present, *others][:KEPT], ensure_ascii=False))


def project_line(repositories: list[str], width: int) -> Content:
    """Formats a project as its folders' names and locations."""
    names = ", ".join(printable(PurePath(path).name or path) for path in repositories)
    where = Content.styled(printable(", ".join(repositories)), "$muted")
    return Content.assemble(("▸ ", "$text-primary"), f"{names:<16} ", where).truncate(width, ellipsis=True)


def run_line(run: RunSummary, width: int) -> Content:
    """Formats a run as its name, status and result."""
    mark, style = RUN_MARKS.get(run.status, ACTIVE_MARK)
    day = time.strftime("%d %b %H:%M", time.localtime(run.started)) if run.started is not None else "n/a"
    gain = ""
    if run.perplexity_before is not None and run.perplexity_after is not None:
        gain = f"perplexity {number_in_words(run.perplexity_before)} → {number_in_words(run.perplexity_after)}"
    elif run.total_steps:
        gain = f"step {run.step:,} of {run.total_steps:,}"
    return Content.assemble(
        (f"{mark} ", style),
        f"{printable(run.model_name):<16.16} ",
        (f"{run.status:<10}", style),
        (f"{day}  ", "$muted"),
        gain,
    ).truncate(width, ellipsis=True)
