"""Collects the pre-flight rows of the review and formats them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from textual.content import Content

from elite_tui.format.figures import printable
from elite_tui.format.layout import hanging

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.errors import EliteError
    from engine.launch.doctor import Check

MARKS = {
    "passed": ("✓", "$text-success"),
    "warning": ("!", "$text-warning"),
    "failed": ("✗", "$text-error"),
    "skipped": ("·", "$faint"),
}
_NAME = 23
_STACKED_BELOW = 66
"Width below which a row's text stands under its name."


@dataclass
class Checks:
    """One examination. A newer one has a higher number; late rows of an older one are dropped."""

    number: int = 0
    names: tuple[str, ...] = ()
    "Names of all rows, in order."
    rows: list[Check] = field(default_factory=list)
    running: bool = False
    error: EliteError | None = None
    "Error of an examination that could not run."

    @property
    def failed(self) -> list[Check]:
        """Rows that keep a run from starting."""
        return [row for row in self.rows if row.status == "failed"]

    @property
    def done(self) -> bool:
        """Whether every row has arrived."""
        return not self.running and bool(self.rows)

    def begin(self) -> int:
        """Clears the rows and returns the number of the new examination."""
        self.number += 1
        self.rows, self.running, self.error = [], True, None
        return self.number

    def forget(self) -> None:
        """Clears an outdated examination."""
        self.number += 1
        self.rows, self.running, self.error = [], False, None


def in_words(checks: Checks, width: int) -> Content:
    """Formats all rows, including pending ones; each failure and warning with its remedy."""
    if checks.error is not None:
        return Content.assemble(("✗ ", "$text-error"), printable(str(checks.error)))
    lines: list[Content] = []
    for row in checks.rows:
        lines += _row(row, width)
    if checks.running:
        lines += _coming(checks.names, {row.name for row in checks.rows})
    return Content("\n").join(lines)


def _row(row: Check, width: int) -> list[Content]:
    mark, style = MARKS[row.status]
    head = Content.assemble((f"{mark} ", f"{style} bold"), (f"{printable(row.name):<{_NAME}} ", "bold"))
    text = Content.styled(printable(row.text), "$muted" if row.status == "skipped" else "")
    indent = Content(" " * (4 if width < _STACKED_BELOW else head.cell_length))
    lines = [head, *hanging(indent, text, width)] if width < _STACKED_BELOW else hanging(head, text, width)
    if row.remedy:
        lines += hanging(indent, Content.styled(f"→ {printable(row.remedy)}", style), width)
    return lines


def _coming(names: Sequence[str], known: set[str]) -> list[Content]:
    coming = [name for name in names if name not in known]
    return [
        Content.styled(f"{'…' if index == 0 else ' '} {name}", "$text-accent" if index == 0 else "$faint")
        for index, name in enumerate(coming)
    ]


def verdict(checks: Checks) -> Content:
    """Summarises the examination in one line."""
    counts = [
        f"{count} {word}"
        for status, word in (("failed", "failed"), ("warning", "to know about"), ("passed", "passed"))
        if (count := sum(row.status == status for row in checks.rows))
    ]
    words = ", ".join(counts)
    if checks.running:
        return Content.styled(f"examining … {words}", "$muted")
    return Content.styled(words, "$muted")
