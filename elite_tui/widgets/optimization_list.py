"""Lists every optimisation by group, one per line, with its state and its effect on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.widgets import OptionList
from textual.widgets.option_list import Option

from elite_tui.format.optimizations import GROUPS, heading, row_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engine.plan.optimizations import Optimization, OptimizationState

_MARGIN = 3
"Cells reserved for scrollbar and padding."


class OptimizationList(OptionList):
    """The list. Group titles cannot be selected. `show` replaces the states and keeps the cursor in place."""

    def __init__(self, *, id: str) -> None:  # noqa: A002
        super().__init__(id=id, markup=False)
        self._shown: tuple[object, ...] = ()

    @property
    def present(self) -> str | None:
        """Id of the row under the cursor."""
        option = self.highlighted_option
        return option.id if option is not None else None

    def show(self, rows: Sequence[Optimization], states: Mapping[str, OptimizationState]) -> None:
        """Redraws every row if anything changed."""
        width = self.size.width - _MARGIN
        shown = (tuple(states.values()), width)
        if shown == self._shown or width <= 0:
            return
        self._shown = shown
        prompts = {}
        for group in GROUPS:
            here = [row for row in rows if row.group == group]
            prompts[f"group-{group}"] = heading(group, [states[row.id] for row in here], width)
            prompts.update({row.id: row_line(row, states[row.id], width) for row in here})
        if self.option_count == len(prompts):
            for name, prompt in prompts.items():
                self.replace_option_prompt(name, prompt)
            return
        self.clear_options()
        self.add_options(
            Option(prompt, id=name, disabled=name.startswith("group-")) for name, prompt in prompts.items()
        )
        self.highlighted = 1
