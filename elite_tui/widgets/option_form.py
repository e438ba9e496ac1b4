"""Generates a form with every configuration field that the first screen does not ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.containers import VerticalScroll
from textual.widgets import Static

from elite_tui.widgets.field_row import FieldRow
from engine.config import fields

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from textual.app import ComposeResult
    from textual.events import Key
    from textual.widget import Widget

    from elite_tui.wizard.draft import Draft
    from engine.config import Problem
    from engine.config.description import FieldSpec

SECTION_TITLES = {
    "training": "Training",
    "stream": "Streamed step",
    "lora": "Adapter (LoRA)",
    "model": "Model",
    "data": "Data",
    "checkpoint": "Checkpoints",
    "output": "Output",
}
"Sections in display order; an unlisted one comes last, under its own name."


AT_ONCE = 6
"Rows mounted together: a row takes about 15 ms of CPU, and keys wait for no longer than these."
AHEAD = 1
"Heights of the form that are mounted beyond its lower edge, once what is seen is drawn."
AHEAD_AFTER = 0.1
"Seconds of rest before each batch of them."


class OptionForm(VerticalScroll):
    """One row per field, by section. Mounts rows as they come near, since a hundred take seconds.

    Args:
        draft: The draft that the form edits.
        problems: The draft's problems by field.
        left_out: Fields shown elsewhere.
        id: The widget's id.
    """

    def __init__(
        self,
        draft: Draft,
        problems: Mapping[str, Problem],
        left_out: Collection[str],
        *,
        id: str,  # noqa: A002
    ) -> None:
        super().__init__(id=id, can_focus=False)
        self._draft = draft
        self._problems = problems
        self._specs = _in_sections([spec for spec in fields() if spec.path not in left_out])
        self._placeholders: Mapping[str, str] = {}
        self._mounted = 0
        "Number of mounted rows."
        wrong = [spec.path for spec in self._specs if spec.path in problems]
        self._awaited = wrong[0] if wrong else self._specs[0].path
        "Path of the field to focus once its row is mounted: the first with a problem, else the first."
        self._typed: dict[str, list[Key]] = {}
        "Characters typed for fields whose rows are not mounted yet."
        self._mounting = False
        self._resting = False
        "Whether rows ahead wait for their turn."

    def compose(self) -> ComposeResult:
        """Composes the first rows."""
        yield from self._next_rows()

    def _next_rows(self) -> Iterator[Widget]:
        end = min(self._mounted + AT_ONCE, len(self._specs))
        for index in range(self._mounted, end):
            spec = self._specs[index]
            if index == 0 or self._specs[index - 1].section != spec.section:
                yield Static(SECTION_TITLES.get(spec.section, spec.section), classes="section", markup=False)
            row = FieldRow(spec, self._draft)
            self._mark(row)
            yield row
        self._mounted = end

    def on_mount(self) -> None:
        """Focuses the awaited field."""
        self._continue()

    def focus_field(self, path: str) -> None:
        """Focuses a field once its row is mounted; until then no other field takes what is typed."""
        self._awaited = path
        self._continue()
        if self._awaited and self.is_attached:
            self.screen.set_focus(None)

    def move_focus(self, offset: int) -> bool:
        """Moves the focus by `offset` fields, also to those without a row yet; returns False at an end of the form."""
        row, paths = self._focused_row(), [spec.path for spec in self._specs]
        present = self._awaited or (row.spec.path if row is not None else "")
        index = paths.index(present) + offset if present else -1
        if 0 <= index < len(paths):
            self.focus_field(paths[index])
            return True
        self._awaited = ""
        return False

    def focus_last(self) -> None:
        """Focuses the last field, which may have no row yet."""
        self.focus_field(self._specs[-1].path)

    def keep(self, event: Key) -> bool:
        """Keeps a typed character for the field that is awaited; returns whether it did."""
        if not (self._awaited and event.is_printable):
            return False
        self._typed.setdefault(self._awaited, []).append(event)
        return True

    def _continue(self) -> None:
        """Focuses the awaited field, or mounts the next rows if more are wanted."""
        if not self.is_attached:
            return
        for row in self.query(FieldRow):
            if not row.is_mounted or row.spec.path not in {self._awaited, *self._typed}:
                continue
            if row.spec.path == self._awaited:
                self._awaited = ""
                self.screen.set_focus(row.control)  # at once: another tab counts from here
            for event in self._typed.pop(row.spec.path, ()):
                row.control.post_message(event)
        if self._mounting or self._mounted >= len(self._specs):
            return
        height, end = self.size.height, self.virtual_size.height - self.scroll_y
        if self._awaited or (height and end < height):
            self._mounting = True
            self.call_later(self._mount_batch)
        elif height and end < height * (1 + AHEAD) and not self._resting:
            self._resting = True
            self.set_timer(AHEAD_AFTER, self._go_on)

    def _go_on(self) -> None:
        """Mounts rows ahead, unless keys have asked for some in the meantime."""
        self._resting = False
        if not self._mounting:
            self._mounting = True
            self.call_later(self._mount_batch)

    async def _mount_batch(self) -> None:
        await self.mount_all(self._next_rows())
        self._mounting = False
        self.call_after_refresh(self._continue)

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Mounts the rows that come near."""
        super().watch_scroll_y(old_value, new_value)
        self._continue()

    def on_resize(self) -> None:
        """Mounts the rows of a larger form."""
        self._continue()

    def show(self, problems: Mapping[str, Problem], placeholders: Mapping[str, str]) -> None:
        """Draws problems beside their fields, and marks non-default values.

        Args:
            problems: The draft's problems by field.
            placeholders: What empty fields show, by field, where it is more than their default.
        """
        self._problems, self._placeholders = problems, placeholders
        for row in self.query(FieldRow):
            self._mark(row)

    def _mark(self, row: FieldRow) -> None:
        row.show(self._problems.get(row.spec.path))
        row.set_placeholder(self._placeholders.get(row.spec.path, ""))
        row.set_class(not self._draft.is_default(row.spec.path), "-changed")

    def reset_field(self) -> None:
        """Resets the focused field to its default."""
        row = self._focused_row()
        if row is not None:
            row.set_text("")

    def next_problem(self) -> None:
        """Focuses the next field with a problem, from the top again after the last."""
        row = self._focused_row()
        paths = [spec.path for spec in self._specs]
        start = paths.index(row.spec.path) + 1 if row is not None else 0
        following = next((path for path in paths[start:] + paths[:start] if path in self._problems), None)
        if following is not None:
            self.focus_field(following)

    def _focused_row(self) -> FieldRow | None:
        return next((row for row in self.query(FieldRow) if row.has_focus_within), None)


def _in_sections(specs: Sequence[FieldSpec]) -> list[FieldSpec]:
    """Sorts fields by section, the listed sections first."""
    order = list(dict.fromkeys([*SECTION_TITLES, *(spec.section for spec in specs)]))
    return sorted(specs, key=lambda spec: order.index(spec.section))
