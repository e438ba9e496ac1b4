"""One conversation rendered between marks, which tell what it says from what its template writes."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from engine.tokenization.chat_messages import Message, changed, changed_message, shape, stub
from engine.tokenization.chat_template import ChatTemplate, Marks, RenderError

TOLD = ("system", "developer")
"""Roles whose words may change what a template writes elsewhere, such as /no_think."""

_ASKED: Message = {"role": "user", "content": "a"}


class SplitError(Exception):
    """A template's rendering cannot be split into turns exactly. The message says where."""


@dataclass(frozen=True, slots=True)
class Part:
    """Of a marked rendering: the template's text (message -1), or a string of a message."""

    text: str
    message: int = -1
    answer: bool = False
    "Between `{% generation %}` and its end."
    spelled: bool = False
    "Whether it begins within the name of a control token that a string spells."


class MarkedConversation:
    """One conversation, rendered with marks."""

    def __init__(
        self,
        template: ChatTemplate,
        messages: Sequence[Message],
        tools: Sequence[Message] | None,
        marks: Marks,
        control: re.Pattern[str],
        now: datetime | None,
    ) -> None:
        self.messages, self.marks, self.names = messages, marks, True
        self._template, self._control, self._now = template, control, now
        self._tools = None if tools is None else [changed(tool, self._inert, key=self._inert) for tool in tools]

    def strings(self, number: int) -> list[str]:
        """The strings of a message that its content is made of, reasoning apart."""
        found: list[str] = []

        def collect(text: str) -> str:
            found.append(text)
            return text

        changed_message(self.messages[number], collect, collect, collect, reasoning=False)
        return found

    def shape(self, number: int) -> object:
        """What the prompt for an answer depends on, as far as is known."""
        told = [message.get("content") for message in self.messages[:1] if message.get("role") in TOLD]
        return (
            bool(self._tools),
            number < 2,
            repr(told),
            repr(list(map(shape, self.messages[max(number - 2, 0) : number]))),
        )

    def early_answer(self) -> int | None:
        """Number of the answer before any request, with which the conversation begins, instructions apart."""
        roles = [message.get("role") for message in self.messages]
        number = next((number for number, role in enumerate(roles) if role not in TOLD), len(roles))
        return number if number < len(roles) and roles[number] == "assistant" else None

    def prompt_alone(self, number: int) -> str | None:
        """What the template writes as the prompt of an answer behind nothing but instructions; None: it fails."""
        try:
            return self.tail(number, prompt=True)
        except RenderError:
            return None

    def between(self) -> str:
        """What the template writes as a prompt behind a request, the end of its turn apart."""
        ends, goes_on = (
            self._template.render([_ASKED], None, prompt=prompt, now=self._now) for prompt in (False, True)
        )
        if not goes_on.startswith(ends):
            raise SplitError("it writes a request in another way before an answer")
        return goes_on[len(ends) :]

    def inert(self) -> str:
        """The rendering, where no string spells a control token."""
        messages = [
            self._without_tokens(changed_message(message, self._inert, self._inert, self._inert, key=self._inert))
            for message in self.messages
        ]
        text = self._template.render(messages, self._tools, now=self._now)
        return text.replace(self.marks.inert, "")

    def rendered(self, *, names: bool, prompt: bool = False) -> str:
        """The rendering with marks around every string; with the prompt for the next answer, if so."""
        return self._render(self.messages, names=names, prompt=prompt)

    def tail(self, number: int, *, prompt: bool) -> str:
        """What a template writes behind the last string of the messages before one, which are shortened."""
        stubs = [
            message if message.get("role") in TOLD else changed_message(message, stub, stub, str)
            for message in self.messages[:number]
        ]
        return self._tail(stubs, prompt=prompt)

    def _tail(self, stubs: Sequence[Message], *, prompt: bool) -> str:
        rendered = self._render(stubs, names=self.names, prompt=prompt)
        parts = self.parts(rendered)
        if parts is None:
            raise SplitError("it writes a string in part")
        strings = [place for place, part in enumerate(parts) if part.message >= 0]
        return "".join(part.text for part in parts[strings[-1] + 1 if strings else 0 :])

    def end(self, number: int) -> str:
        """What a template writes behind an answer with which a conversation ends."""
        try:
            return self.tail(number + 1, prompt=False)
        except RenderError:
            if self.early_answer() != number:
                raise
            # Some refuse a conversation in which nobody asks.
            before = [message for message in self.messages[:number] if message.get("role") in TOLD]
            return self._tail([*before, _ASKED, changed_message(self.messages[number], stub, stub, str)], prompt=False)

    def leaves_open(self) -> bool:
        """Tells whether the template writes nothing behind an answer in words."""
        try:
            return not self._tail([_ASKED, {"role": "assistant", "content": "a"}], prompt=False).strip()
        except (RenderError, SplitError):
            return False

    def parts(self, marked: str) -> list[Part] | None:
        """What a marked rendering is made of; None where a mark has no partner."""
        marks, parts = self.marks, []
        seen: set[str] = set()
        answer = False
        position = 0
        signs = f"[{marks.open}{marks.close}{marks.begin}{marks.end}]"
        of_string: tuple[int, str] | None = None
        for found in re.finditer(f"{signs}[{marks.digits}]*", marked):
            text = marked[position : found.start()]
            sign, digits = found[0][0], found[0][1:]
            position = found.end()
            if of_string is None:
                parts += self._template_parts(text, answer)
            elif sign != marks.close:
                return None
            if sign == marks.open:
                # A string that is written again, such as a call's name with its result, is the template's.
                message = -1 if digits in seen else marks.read(digits[:-6])
                seen.add(digits)
                of_string = (message, digits)
            elif sign == marks.close:
                if of_string is None:
                    return None
                if of_string[0] >= 0:
                    parts.append(Part(text.replace(marks.inert, ""), of_string[0], answer))
                else:
                    parts += self._template_parts(text, answer)
                of_string = None
            else:
                answer = sign == marks.begin
        if of_string is not None:
            return None
        parts += self._template_parts(marked[position:], answer)
        return [part for part in parts if part.text]

    def _template_parts(self, text: str, answer: bool) -> list[Part]:
        """A template's text, cut within every name of a control token that comes from a string in it."""
        return [Part(some, -1, answer, number > 0) for number, some in enumerate(text.split(self.marks.inert))]

    def _render(self, messages: Sequence[Message], *, names: bool, prompt: bool) -> str:
        marked = []
        for number, message in enumerate(messages):
            known: dict[str, str] = {}

            # Values that the template writes as Python does are marked while it is rendered.
            def mark(text: str, number: int = number, counts: Iterator[int] = itertools.count(1)) -> str:  # noqa: B008
                core = text.strip()
                if not core:
                    return text
                at = text.index(core)
                place = f"{self.marks.number(number)}{self._place(next(counts))}"
                return (
                    f"{text[:at]}{self.marks.open}{place}{self._inert(core)}{self.marks.close}{text[at + len(core) :]}"
                )

            def mark_once(text: str, known: dict[str, str] = known) -> str:
                # Reasoning under two names is one string.
                if text not in known:
                    known[text] = mark(text)
                return known[text]

            made = changed_message(message, mark, mark_once, mark if names else self._inert, key=self._inert)
            marked.append(self._without_tokens(made))
        return self._template.render(marked, self._tools, prompt=prompt, marks=self.marks, now=self._now)

    def _without_tokens(self, message: dict[str, Any]) -> dict[str, Any]:
        """The message whose other fields spell no control token."""
        for key in ("role", "name", "tool_call_id"):
            if isinstance(message.get(key), str):
                message[key] = self._inert(message[key])
        for call in message.get("tool_calls") or ():
            if isinstance(call.get("id"), str):
                call["id"] = self._inert(call["id"])
        return message

    def _place(self, count: int) -> str:
        return "".join(self.marks.digits[int(digit, 16)] for digit in f"{count:06x}")

    def _inert(self, text: str) -> str:
        """The text with a mark inside the name of every control token that it spells."""
        return self._control.sub(lambda found: f"{found[0][:1]}{self.marks.inert}{found[0][1:]}", text)
