"""Hardware: what this machine has, with live levels."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.widgets import Button, Static

from elite_tui.actions import bindings_for, room_actions
from elite_tui.figures import NOT_AVAILABLE, bytes_in_words, printable
from elite_tui.screens.room import RoomScreen
from elite_tui.widgets.machine_gauges import MachineGauges

if TYPE_CHECKING:
    from collections.abc import Iterable

    from textual.binding import BindingType
    from textual.widget import Widget

    from engine.hardware.machine import Machine


class HardwareScreen(RoomScreen):
    """The room of the machine."""

    ROOM = "hardware"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings_for(room_actions(ROOM))]
    CSS_PATH = "hardware.tcss"

    def compose_room(self) -> Iterable[Widget]:
        """Levels, inventory, libraries."""
        with VerticalScroll(id="machine", can_focus=True):
            yield Static("Now", classes="section", markup=False)
            yield MachineGauges()
            yield Static("Machine", classes="section", markup=False)
            yield Static(id="inventory", markup=False)
            yield Static("Libraries", classes="section", markup=False)
            yield Static(id="libraries", markup=False)
        with Horizontal(classes="buttons"):
            yield Button("Back", id="back", compact=True)
            yield Button("Continue", id="forward", variant="primary", compact=True)

    def on_mount(self) -> None:
        """The keys go to the page, which scrolls."""
        super().on_mount()
        self.query_one("#forward", Button).focus()

    def show(self, what: str) -> None:
        """Draws levels four times a second at most, the inventory when it is there."""
        if what in ("all", "snapshots"):
            self.query_one(MachineGauges).show(self.state)
        if what in ("all", "machine"):
            fetched = self.state.machine
            if fetched.error is not None:
                text = Content.assemble(
                    ("✗ ", "$text-error"), fetched.error.message, "\n  ", (fetched.error.remedy, "$muted")
                )
                self.query_one("#inventory", Static).update(text)
            elif fetched.value is None:
                self.query_one("#inventory", Static).update(Content.styled("taking the inventory …", "$muted"))
            else:
                self.query_one("#inventory", Static).update(inventory(fetched.value))
                self.query_one("#libraries", Static).update(libraries(fetched.value))

    @on(Button.Pressed, "#forward")
    def _forward_pressed(self) -> None:
        self.action_forward()

    @on(Button.Pressed, "#back")
    def _back_pressed(self) -> None:
        self.action_back()

    def action_rescan(self) -> None:
        """Takes the inventory again."""
        self.elite.ask_machine()


def inventory(machine: Machine) -> Content:
    """What the machine has, one device a line."""
    rows: list[tuple[str, str]] = []
    for gpu in machine.gpus:
        details = [bytes_in_words(gpu.memory_total)]
        if gpu.architecture:
            details.append(gpu.architecture)
        if gpu.compute_capability:
            details.append("compute capability {}.{}".format(*gpu.compute_capability))
        details.append("bf16" if gpu.has_bf16 else "fp16 only")
        if gpu.driver:
            details.append(f"driver {gpu.driver}")
        rows.append((f"GPU {gpu.index}", f"{gpu.name}: " + ", ".join(details)))
    if not machine.gpus:
        rows.append(("GPU", "none found: training runs on the CPU"))
    limited = f", limited by {machine.ram_limited_by}" if machine.ram_limited_by else ""
    rows += [
        ("CPU", f"{machine.cpu_name or NOT_AVAILABLE}, {machine.cpu_cores} cores"),
        ("RAM", f"{bytes_in_words(machine.ram_total)}, {bytes_in_words(machine.ram_available)} available{limited}"),
        ("Swap", bytes_in_words(machine.swap_total)),
        ("Disk", f"{bytes_in_words(machine.disk_free)} free of {bytes_in_words(machine.disk_total)}"),
    ]
    lines = [Content.assemble((f"{name:<10}", "$muted"), printable(text)) for name, text in rows]
    if machine.simulated:
        lines.insert(
            0,
            Content.styled(
                f"! simulated: plans are for {printable(machine.simulated)}; training uses what is really here",
                "$text-warning",
            ),
        )
    return Content("\n").join(lines)


def libraries(machine: Machine) -> Content:
    """Which libraries are installed, and in which version."""
    lines = [
        Content.assemble(
            ("✓ ", "$text-success") if version else ("○ ", "$muted"),
            f"{printable(name):<18}",
            (printable(version or "not installed"), "" if version else "$muted"),
        )
        for name, version in machine.libraries.items()
    ]
    return Content("\n").join(lines) if lines else Content.styled("none looked for", "$muted")
