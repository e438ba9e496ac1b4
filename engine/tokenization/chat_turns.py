"""Renders a conversation once, and tells which of its characters the model writes.

Every string of the conversation is rendered between marks, so that what a template writes is told from what the
conversation says, whatever it spells. What a model writes of an answer begins where the template's own prompt for it
ends, and ends with the template's end of the turn. Both are read off short renderings of what comes before, and
compared with the whole: a template for which they differ cannot be split, and is refused. Where a template has
`{% generation %}`, that tells it.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from engine.tokenization.chat_messages import (
    Message,
    strings_of,
    thought_of,
    with_text_arguments,
    with_thought,
)
from engine.tokenization.chat_template import ChatTemplate, Marks, RenderError
from engine.tokenization.marked_conversation import MarkedConversation, Part, SplitError

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a rendering: one control token, or text without one."""

    text: str
    control: bool
    answer: bool
    "Whether the model writes it."
    continues: bool = False
    "Whether it goes on with the text before it, and is encoded apart only because the model begins or ends there."
    turn: bool = False
    "Whether a turn begins with it."
    weight: float = 1.0
    "Factor of the loss of what the model writes."


class ConversationRenderer:
    """Renders conversations by one template, for one tokenizer.

    Args:
        template: The chat template.
        control: The texts of the tokenizer's control tokens.
    """

    def __init__(self, template: ChatTemplate, control: Sequence[str]) -> None:
        self.template = template
        names = sorted(filter(None, control), key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, names)) if names else r"(?!)")
        self._known: dict[object, list[str]] = {}
        "Units of prompts and endings that were rendered before."
        self._unended: bool | None = None
        "Whether nothing stands behind an answer in words. None: not yet asked for."
        self._tells_none = re.search(r"content(['\"]\])? is (not )?none", template.text) is not None
        self._thinks = any(name in template.text for name in ("reasoning_content", ".thinking", '"thinking"'))

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Message] | None = None,
        learnt: Sequence[float] | None = None,
        now: datetime | None = None,
    ) -> list[Piece]:
        """Renders a conversation.

        Args:
            messages: As transformers' `apply_chat_template` takes them, with content as text.
            tools: Definitions of functions.
            learnt: Factor of each message's loss, if it is an answer; 0 where it is not trained on. None: 1 of all.
            now: What the template is told of the time.

        Raises:
            RenderError: the template refuses the conversation.
            SplitError: its rendering cannot be split.
        """
        return self._tried(messages, lambda given: self._rendered(given, tools, learnt, now))

    def _rendered(
        self,
        messages: Sequence[Message],
        tools: Sequence[Message] | None,
        learnt: Sequence[float] | None,
        now: datetime | None,
    ) -> list[Piece]:
        messages = [self._with_reasoning(message) for message in messages]
        learnt = [1.0] * len(messages) if learnt is None else learnt
        whole = "\n".join((*strings_of(messages), *strings_of(tools or []), self.template.text))
        conversation = MarkedConversation(self.template, messages, tools, Marks.apart_from(whole), self._control, now)
        answers = self._marked_answers if self.template.marks_answers else self._found_answers
        try:
            parts = self._marked(conversation)
            _check_written(conversation, parts)
            return _pieces(parts, answers(conversation, parts, learnt), self._control)
        except (RenderError, SplitError) as error:
            if (early := conversation.early_answer()) is None:
                raise
            problem = f"message {early + 1} is an answer before any request, for which it has no prompt ({error})"
            raise type(error)(problem) from error

    def prompt(
        self, messages: Sequence[Message], tools: Sequence[Message] | None = None, now: datetime | None = None
    ) -> list[Piece]:
        """Renders what the model is given to write the next answer of a conversation.

        Raises:
            RenderError, SplitError: as `render`.
        """
        return self._tried(messages, lambda given: self._prompt_of(given, tools, now))

    @staticmethod
    def _tried(messages: Sequence[Message], render: Callable[[Sequence[Message]], list[Piece]]) -> list[Piece]:
        """Renders with the arguments of calls as objects; as JSON in a text where a template takes no objects."""
        try:
            return render(messages)
        except RenderError:
            told = [with_text_arguments(message) for message in messages]
            if told != list(messages):
                with contextlib.suppress(RenderError):
                    return render(told)
            raise

    def _prompt_of(
        self, messages: Sequence[Message], tools: Sequence[Message] | None, now: datetime | None
    ) -> list[Piece]:
        messages = [self._with_reasoning(message) for message in messages]
        whole = "\n".join((*strings_of(messages), *strings_of(tools or []), self.template.text))
        conversation = MarkedConversation(self.template, messages, tools, Marks.apart_from(whole), self._control, now)
        parts = conversation.parts(conversation.rendered(names=True, prompt=True))
        if parts is None:
            raise SplitError("it writes a string in part")
        return _pieces(parts, (), self._control)

    def request_prompt(self, now: datetime | None = None) -> list[Piece]:
        """Renders what stands before the words of a conversation's first request.

        Raises:
            RenderError, SplitError: as `render`.
        """
        asked = [{"role": "user", "content": "a"}]
        marks = Marks.apart_from(self.template.text)
        conversation = MarkedConversation(self.template, asked, None, marks, self._control, now)
        parts = conversation.parts(conversation.rendered(names=True)) or []
        words = next((place for place, part in enumerate(parts) if part.message == 0), None)
        if words is None:
            raise SplitError("it does not write a request")
        return _pieces(parts[:words], (), self._control)

    def _with_reasoning(self, message: Message) -> dict[str, Any]:
        """Gives reasoning all the names that templates read it by."""
        known = dict(message)
        if known.get("content") is None and not self._tells_none:
            known["content"] = ""  # many templates look for words in it
        reasoning = next((known[k] for k in ("reasoning_content", "thinking", "reasoning") if known.get(k)), None)
        content = known.get("content")
        if reasoning is None and known.get("role") == "assistant" and isinstance(content, str):
            if self._thinks and (found := thought_of(content)):
                # Templates tell reasoning by the tokens, which a content's own text is not.
                reasoning, known["content"] = found
            elif all(map(self._control.fullmatch, ("<think>", "</think>"))):
                known["content"] = with_thought(content)  # a template that knows no reasoning leaves it to the content
        if reasoning is not None:
            known |= {"reasoning_content": reasoning, "thinking": reasoning}
        return known

    def _marked(self, conversation: MarkedConversation) -> list[Part]:
        """The parts of the marked rendering, whose text is that of the unmarked one.

        A name in a call is the only string of a call without arguments. Few templates compare it.
        """
        problem = "it changes with marks around the strings"
        plain = conversation.inert()
        for names in (True, False):
            marked = conversation.rendered(names=names)
            if conversation.marks.without(marked) == plain:
                parts = conversation.parts(marked)
                if parts is not None:
                    conversation.names = names
                    return parts
                problem = "it writes a string in part"
        raise SplitError(problem)

    def _marked_answers(
        self,
        conversation: MarkedConversation,  # noqa: ARG002 - as _found_answers
        parts: Sequence[Part],
        learnt: Sequence[float],
    ) -> list[tuple[int, int, float]]:
        """Ranges of characters that a template marks itself, and their weights, of the messages that are learnt."""
        found: list[tuple[int, int, float]] = []
        begin = position = 0
        messages: set[int] = set()
        inside = False
        for part in [*parts, Part("")]:
            if part.answer and not inside:
                begin, messages = position, set()
            if inside and not part.answer and all(learnt[message] for message in messages):
                weights = {float(learnt[message]) for message in messages} or {1.0}
                if len(weights) > 1:
                    raise SplitError("it marks messages of different weights as one answer")
                found.append((begin, position, weights.pop()))
            inside = part.answer
            if inside and part.message >= 0:
                messages.add(part.message)
            position += len(part.text)
        return found

    def _found_answers(
        self, conversation: MarkedConversation, parts: Sequence[Part], learnt: Sequence[float]
    ) -> list[tuple[int, int, float]]:
        """Range of characters of each answer that is learnt, from the end of its prompt to that of its turn; weight."""
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        strings: list[tuple[int, int, int]] = []
        position = 0
        for part in parts:
            if part.message >= 0:
                first.setdefault(part.message, position)
                last[part.message] = position + len(part.text)
                strings.append((position, position + len(part.text), part.message))
            position += len(part.text)
        text = "".join(part.text for part in parts)
        begins = [begin for begin, *_ in strings]
        found = []
        for number, message in enumerate(conversation.messages):
            if message.get("role") != "assistant" or not learnt[number]:
                continue
            if number not in first:
                raise SplitError(f"message {number + 1} (assistant) says nothing")
            # By their place: some templates write what the system says with the last request.
            own = slice(bisect.bisect_left(begins, first[number]), bisect.bisect_left(begins, last[number]))
            before = strings[own.start - 1][1] if own.start else 0
            after = begins[own.stop] if own.stop < len(begins) else len(text)
            if any(other != number for *_, other in strings[own]):
                raise SplitError(f"it writes message {number + 1} in several places")
            begin = before + self._prompt(conversation, number, text[before : first[number]])
            end = last[number] + self._closing(conversation, number, text[last[number] : after])
            found.append((begin, end, float(learnt[number])))
        return found

    def _prompt(self, conversation: MarkedConversation, number: int, written: str) -> int:
        """How many characters of what stands before an answer are the prompt for it."""
        key = "prompt", conversation.shape(number)
        units = self._units(written)
        known = self._known.get(key)
        if conversation.early_answer() == number:
            return self._early_prompt(conversation, number, written)
        if known and (taken := _matched(units, known)) is not None:
            return taken
        wanted = self._known[key] = self._units(conversation.tail(number, prompt=True))
        if wanted and (taken := _matched(units, wanted)) is not None:
            return taken
        # A prompt may begin the model's own turn for it, such as with a token before reasoning that is not repeated.
        closing = self._units(conversation.tail(number, prompt=False)) if number else []
        shared = 0
        while shared < min(len(units), len(wanted)) and units[shared] == wanted[shared]:
            shared += 1
        if shared > len(closing) and wanted[: len(closing)] == closing:
            return sum(map(len, units[:shared]))
        raise SplitError(f"what it writes before message {number + 1} is not its prompt for an answer")

    def _early_prompt(self, conversation: MarkedConversation, number: int, written: str) -> int:
        """As `_prompt`, before any request.

        A template may refuse to ask for such an answer, or write instructions of its own before it, but only if there
        is a message. So it is the prompt between a request and its answer that must be written, or all of it but what
        begins the model's own turn, such as a token before reasoning.
        """
        alone = conversation.prompt_alone(number)
        if alone and (taken := _matched(self._units(written), self._units(alone))) is not None:
            return taken
        prompt = conversation.between()
        if (at := written.rfind(prompt)) >= 0:
            return at + len(prompt)
        units, wanted = self._units(written), self._units(prompt)
        begin = max((place for place, unit in enumerate(units) if unit == wanted[0]), default=len(units))
        pairs = zip(units[begin:], wanted, strict=False)
        end = begin + sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        if end > begin + 1 or begin < end == len(units):
            return sum(map(len, units[:end]))
        raise SplitError(f"what it writes before message {number + 1} is not its prompt for an answer")

    def _closing(self, conversation: MarkedConversation, number: int, written: str) -> int:
        """How many characters of what stands behind an answer the model writes: nothing behind the end token."""
        units, key = self._ended(self._units(written)), ("end", conversation.shape(number + 1))
        wanted = self._known.get(key)
        taken = None if wanted is None else self._ending(units, wanted)
        if wanted is None or taken is None:
            wanted = self._known[key] = self._ended(self._units(conversation.end(number)))
            taken = self._ending(units, wanted)
        if taken is None:
            raise SplitError(f"what it writes behind message {number + 1} is not its end of an answer")
        return taken + (self._next_turn(conversation, units, taken) if wanted else 0)

    def _next_turn(self, conversation: MarkedConversation, units: Sequence[str], taken: int) -> int:
        """How long the next turn's first token is, where only that ends an answer, as GLM's <|observation|> a call."""
        ends = itertools.accumulate(map(len, units))
        following = next((unit for end, unit in zip(ends, units[1:], strict=False) if end == taken), "")
        if self._control.fullmatch(following) is None:
            return 0
        if self._unended is None:
            self._unended = conversation.leaves_open()
        return len(following) if self._unended else 0

    def _ended(self, units: list[str]) -> list[str]:
        """Units up to the end token, behind which a template may write a prompt that nobody asked for."""
        end = self.template.tokens.get("eos_token")
        return units[: units.index(end) + 1] if end in units else units

    def _ending(self, units: Sequence[str], wanted: Sequence[str]) -> int | None:
        """How many characters the units begin with, if they end an answer as is wanted.

        White space behind the last token is not the model's, which has ended by then.
        """
        if not wanted:
            # The next turn's first token is what ends this one, as GLM's <|user|> does.
            return len(units[0]) if units and self._control.fullmatch(units[0]) else 0
        controls = [place for place, unit in enumerate(wanted) if self._control.fullmatch(unit)]
        kept = controls[-1] + 1 if controls and not "".join(wanted[controls[-1] + 1 :]).strip() else len(wanted)
        if self._alike(units[:kept], wanted[:kept]):
            return sum(map(len, units[:kept]))
        if not controls and "".join(units).startswith(whole := "".join(wanted)):
            return len(whole)
        # The end of a last turn may have more tokens than that of one in between, or be another one.
        shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(units, wanted, strict=False)))
        agreed = [place for place in controls if place < shared]
        if agreed and not "".join(self._texts(wanted[shared:])).strip():
            return sum(map(len, units[: agreed[-1] + 1]))
        if shared in controls and shared < len(units) and self._control.fullmatch(units[shared]):
            return sum(map(len, units[: shared + 1]))
        return None

    def _alike(self, units: Sequence[str], wanted: Sequence[str]) -> bool:
        """Whether the units are the wanted ones, but for numbers among the arguments of a call."""
        return len(units) == len(wanted) and all(
            unit == other or (not self._control.fullmatch(unit) and _NUMBER.sub("0", unit) == _NUMBER.sub("0", other))
            for unit, other in zip(units, wanted, strict=True)
        )

    def _texts(self, units: Sequence[str]) -> list[str]:
        return [unit for unit in units if not self._control.fullmatch(unit)]

    def _units(self, text: str) -> list[str]:
        """Control tokens, and the texts between them."""
        units, position = [], 0
        for found in self._control.finditer(text):
            units += [text[position : found.start()], found[0]]
            position = found.end()
        return [unit for unit in (*units, text[position:]) if unit]


def _check_written(conversation: MarkedConversation, parts: Sequence[Part]) -> None:
    """Refuses a rendering that leaves a message out.

    Raises:
        SplitError: it has no string of a message that has some.
    """
    written = {part.message for part in parts}
    for number, message in enumerate(conversation.messages):
        if number not in written and any(string.strip() for string in conversation.strings(number)):
            raise SplitError(f"it does not write message {number + 1} ({message.get('role')})")


def _matched(units: Sequence[str], wanted: Sequence[str]) -> int | None:
    """How many characters the units begin with, if these are all of the wanted ones; the last text may go on."""
    if list(units[: len(wanted) - 1]) != list(wanted[:-1]) or len(units) < len(wanted):
        return None
    return sum(map(len, wanted)) if units[len(wanted) - 1].startswith(wanted[-1]) else None


def _pieces(parts: Sequence[Part], answers: Sequence[tuple[int, int, float]], control: re.Pattern[str]) -> list[Piece]:
    """Cuts a rendering at the control tokens that the template writes, and where answers begin and end."""
    text = "".join(part.text for part in parts)
    tokens: list[tuple[int, int]] = []
    position = 0
    outside: list[tuple[int, str]] = []
    for part in parts:
        # Neighbouring parts of the template are one text, in which a token may stand.
        if part.message < 0 and not part.spelled and outside and outside[-1][0] + len(outside[-1][1]) == position:
            outside[-1] = (outside[-1][0], outside[-1][1] + part.text)
        elif part.message < 0:
            outside.append((position, part.text))
        position += len(part.text)
    for start, written in outside:
        tokens += [(start + found.start(), start + found.end()) for found in control.finditer(written)]
    ranges = [*tokens, *((begin, end) for begin, end, _ in answers)]
    borders = sorted({0, len(text), *(place for pair in ranges for place in pair)})
    is_token = dict(tokens)
    begins = {begin: weight for begin, _, weight in answers}
    ends = {end for _, end, _ in answers}
    pieces: list[Piece] = []
    inside, weight = False, 1.0
    for start, stop in itertools.pairwise(borders):
        inside = start in begins or (inside and start not in ends)
        weight = begins.get(start, weight) if inside else 1.0
        control_token = is_token.get(start) == stop
        goes_on = bool(pieces) and not pieces[-1].control and not control_token
        pieces.append(Piece(text[start:stop], control_token, inside, goes_on, start in ends, weight))
    return pieces
