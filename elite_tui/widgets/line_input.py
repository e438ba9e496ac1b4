"""A text field of one line that stays fast whatever is pasted into it."""

from __future__ import annotations

from textual.widgets import Input

LONGEST = 8_192
"""Characters: two of the longest paths of Linux. Each key measures and draws them again."""


class LineInput(Input):
    """An Input that cuts text that is too long, and says so."""

    def replace(self, text: str, start: int, end: int) -> None:
        """See Input. Everything that is typed or pasted comes through here."""
        first, last = sorted((max(0, start), min(len(self.value), end)))
        room = max(0, LONGEST - len(self.value) + last - first)
        if len(text) > room:
            self.app.notify(
                f"{len(text):,} characters do not fit: cut after {LONGEST:,}", severity="warning", markup=False
            )
            text = text[:room]
        super().replace(text, start, end)
