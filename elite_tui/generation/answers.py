"""State of the generate screen: the request, and the models' answers folded from their process's events."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from engine.errors import one_line

Status = Literal["closed", "loading", "ready", "writing", "failed"]
SIDES = ("base", "tuned")
DEFAULTS = {"max_tokens": "128", "temperature": "0", "top_p": "1", "seed": "0"}
"""Default settings of a request, as text."""


@dataclass
class Answer:
    """The text of one model. Untrusted."""

    text: str = ""
    pieces: int = 0
    tokens: int | None = None
    "Number of generated tokens; None until the answer is done."
    seconds: float | None = None
    stopped: bool = False


@dataclass
class Generation:
    """State of one generation session."""

    reference: str = ""
    "The run whose models are asked."
    prompt: str = ""
    place: str = ""
    "PATH[:LINE] as typed."
    path: str = ""
    "The file that the prompt is the beginning of; empty for plain text."
    suffix: str = ""
    settings: dict[str, str] = field(default_factory=lambda: dict(DEFAULTS))
    "Settings as typed."
    status: Status = "closed"
    device: str = ""
    sides: tuple[str, ...] = SIDES
    answers: dict[str, Answer] = field(default_factory=dict)
    problem: str = ""
    number: int = 0
    "Number of the latest request; answers to older ones are dropped."

    @property
    def busy(self) -> bool:
        """Whether the models are loading or writing, and can be stopped."""
        return self.status in ("loading", "writing")

    def begin(self, reference: str) -> None:
        """Switches to a run: keeps the prompt and settings, clears another run's answers."""
        if reference != self.reference:
            self.reference, self.answers, self.problem, self.status = reference, {}, "", "closed"

    def asked(self, *, running: bool) -> int:
        """Starts a request and returns its number."""
        self.number += 1
        self.answers = {side: Answer() for side in SIDES}
        self.problem = ""
        self.status = "writing" if running else "loading"
        return self.number

    def hear(self, event: Mapping[str, Any]) -> None:
        """Folds in one event of the process (engine.generation.serving); ignores unknown kinds."""
        kind = event.get("event")
        if kind == "ready":
            self.device = one_line(event.get("device", ""))
            self.sides = tuple(side for side in SIDES if side in event.get("sides", ()))
            self.status = "writing" if self.answers else "ready"
        elif kind == "ended":
            self.status = "closed" if event.get("wanted") else "failed"
            if self.status == "failed":
                self.problem = one_line(event.get("words", ""))
        elif event.get("id") != self.number:
            return
        elif kind == "failed":
            self.status = "ready"
            remedy = event.get("remedy", "")
            self.problem = one_line(event.get("message", "")) + (f"; {one_line(remedy)}" if remedy else "")
        elif (answer := self.answers.get(str(event.get("side")))) is not None:
            if kind == "text":
                answer.text += str(event.get("text", ""))
                answer.pieces += 1
            elif kind == "done":
                answer.tokens, answer.seconds = int(event["tokens"]), float(event["seconds"])
                answer.stopped = bool(event.get("stopped"))
                last = event["side"] == self.sides[-1]
                self.status = "ready" if last or answer.stopped else "writing"


_LABELS = {"max_tokens": "tokens", "temperature": "temperature", "top_p": "top-p", "seed": "seed"}
"""Settings, as the screen calls them."""


def request_of(state: Generation) -> dict[str, Any]:
    """Builds the request from a session's prompt and settings.

    Raises:
        EliteError: SAMPLING_INVALID.
    """
    from argparse import ArgumentTypeError

    import msgspec

    from engine.commands.option_values import number, whole_number
    from engine.errors.generation import SAMPLING_INVALID
    from engine.generation.request import TextRequest

    kinds: dict[str, Callable[[str], float]] = {
        "max_tokens": whole_number(1, 1_000_000),
        "temperature": number(least=0, most=10),
        "top_p": number(above=0, most=1),
        "seed": whole_number(0, 2**63 - 1),
    }
    values: dict[str, Any] = {"prompt": state.prompt, "path": state.path, "suffix": state.suffix, "sides": state.sides}
    try:
        for name, kind in kinds.items():
            try:
                values[name] = kind(state.settings[name].strip() or DEFAULTS[name])
            except ArgumentTypeError as error:
                raise SAMPLING_INVALID(problem=f"{_LABELS[name]}: {error}") from error
        msgspec.convert(values, TextRequest)
    except (ValueError, msgspec.ValidationError) as error:
        raise SAMPLING_INVALID(problem=error) from error
    return values
