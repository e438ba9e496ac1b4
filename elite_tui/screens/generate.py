"""Generates text with the base and the tuned model from a prompt, or a place in a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Button, Input, Static, TextArea

from elite_tui.actions import bindings_for, screen_actions
from elite_tui.format.figures import duration_in_words, printable
from elite_tui.generation.answers import SIDES
from elite_tui.screens.app_screen import AppScreen
from elite_tui.state_part import Parts, StatePart
from elite_tui.widgets.line_input import LineInput
from elite_tui.wizard.draft import unquoted
from engine.errors import EliteError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from textual.binding import BindingType
    from textual.widget import Widget

    from elite_tui.generation.answers import Answer

TITLES = {"base": ("base model", "$secondary"), "tuned": ("fine-tuned", "$primary")}
WORDS = {"max_tokens": "tokens", "temperature": "temperature", "top_p": "top-p", "seed": "seed"}
LONGEST = 200_000
"""Maximum characters of a file loaded into the editor."""


class GenerateScreen(AppScreen):
    """Screen to try a result."""

    ROOM = "generate"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings_for(screen_actions(ROOM))]
    CSS_PATH = "generate.tcss"

    def compose_body(self) -> Iterable[Widget]:
        """Composes the prompt, its source and settings, and both answers side by side."""
        state = self.state.generation
        state.begin(str(self.state.run_path))
        with Horizontal(id="source"):
            yield Static("Prompt", classes="section", markup=False)
            yield Static("or a file:", classes="small", markup=False)
            yield LineInput(
                state.place, id="place", placeholder="path/to/file.py:120, enter reads it", compact=True,
                select_on_focus=False,
            )  # fmt: skip
        yield TextArea(state.prompt, id="prompt", tab_behavior="focus", soft_wrap=False, compact=True)
        with Horizontal(id="settings"):
            for name, words in WORDS.items():
                yield Static(words, classes="small", markup=False)
                yield LineInput(state.settings[name], id=f"set-{name}", compact=True, select_on_focus=False)
            yield Button("Write", id="write", variant="primary", compact=True)
        yield Static(id="status", markup=False)
        with Horizontal(id="answers"):
            for side in SIDES:
                with Vertical(classes="answer", id=f"answer-{side}"):
                    yield Static(id=f"title-{side}", markup=False)
                    with VerticalScroll(can_focus=True):
                        yield Static(id=f"text-{side}", markup=False)

    def enter(self) -> None:
        """Focuses the prompt."""
        self.query_one("#prompt").focus()

    def on_unmount(self) -> None:
        """Frees the models' memory, which another run may need."""
        self.elite.generation_desk.close()

    def show(self, changed: Parts) -> None:
        """Draws the text generated so far."""
        if StatePart.GENERATION not in changed:
            return
        state = self.state.generation
        self.query_one("#status", Static).update(self._status())
        self.query_one("#write", Button).label = "Stop" if state.busy else "Write"
        for side in SIDES:
            answer = state.answers.get(side)
            title, style = TITLES[side]
            head = Content.assemble((title, f"bold {style}"), (self._figures(side, answer), "$muted"))
            self.query_one(f"#title-{side}", Static).update(head)
            text = self.query_one(f"#text-{side}", Static)
            text.update(Content("\n".join(printable(line.expandtabs(4)) for line in _lines(answer))))
            text.parent.scroll_end(animate=False, immediate=False)  # type: ignore[union-attr]
        self.refresh_bindings()

    def _status(self) -> Content:
        state = self.state.generation
        if state.problem:
            return Content.assemble(("✗ ", "$text-error"), printable(state.problem))
        words = {
            "closed": "f5 loads both models and writes; leaving the screen unloads them",
            "loading": "loading the models …",
            "ready": f"ready on {printable(state.device)}",
            "writing": f"writing on {printable(state.device)} …",
            "failed": "the process that writes has ended; f5 starts it again",
        }[state.status]
        if state.path:
            filled = ", filled in before what follows" if state.suffix else ""
            words += f" · the prompt is the beginning of {printable(state.path)}{filled}"
        return Content.styled(words, "$muted")

    def _figures(self, side: str, answer: Answer | None) -> str:
        if side not in self.state.generation.sides:
            return "  not here: this is a model alone"
        if answer is None:
            return ""
        if answer.tokens is None or answer.seconds is None:
            return f"  {answer.pieces} so far …" if answer.pieces else ""
        speed = f", {answer.tokens / answer.seconds:,.0f} a second" if answer.seconds else ""
        stopped = ", stopped" if answer.stopped else ""
        return f"  {answer.tokens} tokens in {duration_in_words(answer.seconds)}{speed}{stopped}"

    # --- input ----------------------------------------------------------------------------------------------

    @on(TextArea.Changed, "#prompt")
    def _prompt_typed(self, event: TextArea.Changed) -> None:
        state = self.state.generation
        state.prompt = event.text_area.text
        if not state.prompt:
            # An emptied prompt no longer is the beginning of a file.
            state.path = state.suffix = ""
            self.show({StatePart.GENERATION})

    @on(Input.Changed)
    def _setting_typed(self, event: Input.Changed) -> None:
        name = (event.input.id or "").removeprefix("set-")
        if name == "place":
            self.state.generation.place = event.value
        elif name in WORDS:
            self.state.generation.settings[name] = event.value

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        if event.input.id == "place":
            self._read_place(event.value.strip())
        else:
            self.action_write()

    def _read_place(self, place: str) -> None:
        from engine.errors.generation import PROMPT_UNREADABLE
        from engine.generation.request import read_place

        state = self.state.generation
        try:
            if not place:
                return
            path, before, after = read_place(unquoted(place))
            if len(before) > LONGEST:
                raise PROMPT_UNREADABLE(
                    path=path,
                    problem=f"{len(before):,} characters are too many to edit here; `engine generate` takes it",
                )
        except EliteError as error:
            state.problem = str(error)
        else:
            state.problem, state.path, state.suffix = "", path, after[:LONGEST]
            area = self.query_one("#prompt", TextArea)
            area.text = before
            area.move_cursor(area.document.end)
            area.focus()
        self.show({StatePart.GENERATION})

    # --- actions --------------------------------------------------------------------------------------------

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002
        """Allows writing and stopping only when possible."""
        busy = self.state.generation.busy
        return {"write": not busy, "stop_writing": busy}.get(action, True)

    def action_write(self) -> None:
        """Requests an answer from both models."""
        self.elite.generation_desk.write()

    def action_stop_writing(self) -> None:
        """Stops the current answer."""
        self.elite.generation_desk.stop()

    def action_leave_generation(self) -> None:
        """Returns to the result."""
        self.elite.go("result")

    @on(Button.Pressed, "#write")
    def _write_pressed(self) -> None:
        if self.state.generation.busy:
            self.action_stop_writing()
        else:
            self.action_write()


def _lines(answer: Answer | None) -> list[str]:
    return answer.text.split("\n") if answer is not None else []
