"""Asks for an export format of a run's result, runs `engine export` and shows the output path."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.containers import Horizontal, Vertical
from textual.message import Message
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Static

from elite_tui.format.figures import printable
from elite_tui.widgets.line_input import LineInput
from engine.errors import EliteError
from engine.errors.export import EXPORT_EXISTS

if TYPE_CHECKING:
    from pathlib import Path

    from textual.app import ComposeResult
    from textual.binding import BindingType

    from elite_tui.client.process import EngineProcess

FORMS = (
    ("adapter", "Adapter", "for use with the base model, by PEFT", ("adapter",)),
    ("merged", "Merged", "one model in safetensors, for transformers", ("merged",)),
    ("gguf", "GGUF", "one file for llama.cpp and Ollama", ("gguf",)),
    ("gguf-4-bit", "4 bits", "the same in 4 bits (q4_k_m), under a third of its size", ("gguf", "--dtype", "q4_k_m")),
)
"""Name of the button, its label, what it is for, and the arguments of `engine export --to`."""


class ExportScreen(ModalScreen[None]):
    """Screen with a button per format. Leaving it stops an export; no partial files remain."""

    CSS_PATH = "export.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        ("escape", "close", "Close"),
        ("left", "app.focus_previous", "Previous"),
        ("right", "app.focus_next", "Next"),
    ]

    class Said(Message):
        """Progress or outcome of the export."""

        def __init__(self, text: str, *, ended: bool, exists: bool = False, written: bool = False) -> None:
            super().__init__()
            self.text, self.ended, self.exists, self.written = text, ended, exists, written

    def __init__(self, run: Path) -> None:
        super().__init__()
        self._run = run
        self._process: EngineProcess | None = None
        self._form = ""
        "The form of the latest export."

    def compose(self) -> ComposeResult:
        """Composes the title, the purpose of each format, the buttons and the outcome."""
        with Vertical(id="dialog"):
            yield Static("Export", classes="title", markup=False)
            lines = "\n".join(f"{label:<9}{purpose}" for _, label, purpose, _ in FORMS)
            yield Static(lines, classes="muted", markup=False)
            with Horizontal(id="into"):
                yield Static("into", classes="label", markup=False)
                yield LineInput(id="folder", placeholder=str(self._run / "exports"), compact=True)
            with Horizontal(classes="buttons"):
                for name, label, _, _ in FORMS:
                    yield Button(label, id=name, compact=True)
                yield Button("Close", id="close", compact=True, variant="primary")
            yield Static(id="said", markup=False)

    def on_mount(self) -> None:
        """Focuses the first format."""
        self.query_one("#adapter", Button).focus()

    @on(Button.Pressed)
    def _pressed(self, event: Button.Pressed) -> None:
        if event.button.id == "close":
            self.action_close()
        elif self._process is None and event.button.id:
            self._begin(event.button.id)

    def _begin(self, form: str) -> None:
        from elite_tui.client.process import EngineProcess

        folder = self.query_one("#folder", Input).value.strip()
        self._form = form
        how = next(arguments for name, _, _, arguments in FORMS if name == form)
        process = EngineProcess("export", str(self._run), *(("--output", folder) if folder else ()), "--to", *how)
        self._process = process
        self.query_one("#said", Static).update("writing …")

        def tell(text: str) -> None:
            self.post_message(self.Said(text, ended=False))

        def work() -> None:
            try:
                written = process.run(tell)
            except EliteError as error:
                # The process's own error, without MEASURING_FAILED's wording.
                problem, remedy = error.values.get("problem", str(error)), error.remedy
                exists = process.error == EXPORT_EXISTS.code
                if exists:
                    remedy = "press again to write into the folder above, or name another"
                self.post_message(self.Said(f"{problem}; {remedy}", ended=True, exists=exists))
            else:
                text = "\n".join(filter(None, (written["path"], written["base"], *written["commands"][:1])))
                self.post_message(self.Said(text, ended=True, written=True))

        self.run_worker(work, thread=True, exclusive=True)

    @on(Said)
    def _show(self, message: Said) -> None:
        text = "\n".join(printable(line) for line in message.text.splitlines())
        self.query_one("#said", Static).update(text)
        if message.ended:
            self._process = None
        if message.exists:
            self.query_one("#folder", Input).value = str(self._free_folder())
        elif message.written:
            self.query_one("#folder", Input).value = ""  # the next form has a folder of its own

    def _free_folder(self) -> Path:
        """Returns a folder beside the earlier exports that does not exist, for another press of the same button."""
        paths = (self._run / "exports" / f"{self._form}-{number}" for number in itertools.count(2))
        return next(path for path in paths if not path.exists())

    def action_close(self) -> None:
        """Closes the screen."""
        self.dismiss(None)

    def on_unmount(self) -> None:
        """Stops an export in progress, however the screen is left: also by another screen, or at the end of the app."""
        if self._process is not None:
            self._process.stop()
