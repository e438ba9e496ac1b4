"""Shows this machine: inventory, live levels, measurements and libraries."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Button, Static

from elite_tui.actions import bindings_for, screen_actions
from elite_tui.format.figures import printable
from elite_tui.format.machine import inventory, libraries, measured
from elite_tui.format.meters import devices, draw
from elite_tui.screens.app_screen import EVERYTHING, WizardScreen
from elite_tui.state_part import Parts, StatePart
from elite_tui.widgets.text_block import TextBlock

if TYPE_CHECKING:
    from collections.abc import Iterable

    from textual.binding import BindingType
    from textual.widget import Widget

DRAWN_FROM = frozenset({StatePart.MACHINE, StatePart.PROFILE, StatePart.MEASURING})


class HardwareScreen(WizardScreen):
    """Screen of the machine."""

    ROOM = "hardware"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings_for(screen_actions(ROOM))]
    CSS_PATH = "hardware.tcss"

    def compose_body(self) -> Iterable[Widget]:
        """Composes levels and measurements, with inventory and libraries beside or below them."""
        with VerticalScroll(id="machine", can_focus=True):
            with Vertical(id="live"):
                yield Static("Now", classes="section", markup=False)
                yield TextBlock("waiting for the first reading …", id="levels")
                yield Static("Measured", classes="section", markup=False)
                yield TextBlock(id="measured")
                yield Button("Measure this machine", id="measure", compact=True)
            with Vertical(id="known"):
                yield Static("Machine", classes="section", markup=False)
                yield TextBlock(id="inventory")
                yield Static("Libraries", classes="section", markup=False)
                yield TextBlock(id="libraries")
        yield self.steps()

    def enter(self) -> None:
        """Focuses the scrolling part."""
        self.query_one("#machine").focus()

    def show(self, changed: Parts) -> None:
        """Draws the changed parts."""
        if StatePart.SNAPSHOTS in changed:
            self._show_levels()
        if changed.isdisjoint(DRAWN_FROM):
            return
        state = self.state
        found = state.machine
        if found.error is not None:
            refusal = Content.assemble(("✗ ", "$text-error"), printable(str(found.error)))
            self.query_one("#inventory", TextBlock).update(refusal)
        elif found.value is None:
            self.query_one("#inventory", TextBlock).update(Content.styled("looking …", "$muted"))
        else:
            width = max(30, self.query_one("#known").content_size.width)
            self.query_one("#inventory", TextBlock).update(inventory(found.value, width))
            self.query_one("#libraries", TextBlock).update(libraries(found.value, width))
        width = max(40, self.query_one("#live").content_size.width)
        self.query_one("#measured", TextBlock).update(measured(found.value, state.profile, state.measuring, width))
        button = self.query_one("#measure", Button)
        button.label = "Stop measuring" if state.profile.loading else "Measure this machine"
        self.refresh_bindings()

    def _show_levels(self) -> None:
        step = self.state.run.step if self.state.run is not None and self.state.run_active else None
        found = devices(self.state.snapshots, step.gpu_reserved if step is not None else None)
        if found:
            width = max(40, self.query_one("#live").content_size.width)
            blocks = [draw(device, width) for device in found]
            self.query_one("#levels", TextBlock).update(Content("\n\n").join(blocks))

    def on_resize(self) -> None:
        """Lays out for the new width."""
        self.call_after_refresh(self.show, EVERYTHING)

    def action_rescan(self) -> None:
        """Takes the inventory again."""
        self.elite.controller.ask_machine()

    def action_measure(self) -> None:
        """Runs `engine profile`, or stops it."""
        if self.state.profile.loading:
            self.elite.controller.stop_measuring()
        else:
            self.elite.controller.run_profile()

    @on(Button.Pressed, "#measure")
    def _measure_pressed(self) -> None:
        self.action_measure()
