"""Asks a model for a function through its chat template, and finds the body in its answer.

A model that was trained to converse often answers a bare file with prose. Its answer to a question is judged as any
other completion: by the file with the body in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from engine.data.chats import Chats, find_template
from engine.errors import EliteError
from engine.evaluation.functions import HeldOutFunction, function_end
from engine.tokenization.chat_template import RenderError
from engine.tokenization.encoder import Encoder
from engine.tokenization.marked_conversation import SplitError

QUESTION = (
    "Complete the last function of this file. Answer with the whole function in one code block and nothing else.\n\n"
    "{path}\n```\n{prefix}```"
)
ANSWER_TOKENS = 96
"Tokens of an answer besides the body: its fence, and the function's head again."
_CHARACTERS = 3
"Of a token, at least, in a question that has to be cut."
_FENCE = re.compile(r"^[ \t]*```[^\n]*\n", re.MULTILINE)


class Asking:
    """Questions for functions in a model's own form."""

    def __init__(self, chats: Chats) -> None:
        """Takes the form of conversations. A file's text becomes no control token of it."""
        self._chats = chats

    @classmethod
    def of(cls, tokenizer: Any, encoder: Encoder, named: str, notify: Callable[[str], None]) -> Asking | None:
        """Finds a model's template; None where there is none, or none that a question can be asked with.

        Args:
            tokenizer: With a chat_template, or without.
            encoder: Of it.
            named: data.chat_template, or the copy of it that a result holds.
            notify: Called with a message for the user where the template cannot be used.
        """
        try:
            template = find_template(tokenizer, encoder, named)
            found = None if template is None else cls(Chats(encoder, template))
            if found is not None:
                found._encoded("")
        except (EliteError, RenderError, SplitError) as error:
            notify(f"no function is asked for through the chat template: {error}")
            return None
        return found

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of what determines the questions, the tokenizer apart."""
        return self._chats.fingerprint

    def request(self, function: HeldOutFunction, budget: int) -> list[int]:
        """Encodes a question of at most `budget` tokens, with the nearest part of the file."""
        prefix = function.prefix
        while True:
            ids = self._encoded(QUESTION.format(path=function.path, prefix=prefix))
            excess = len(ids) - budget
            if excess <= 0 or not prefix:
                return ids[-budget:]
            prefix = prefix[_CHARACTERS * excess :]

    def _encoded(self, question: str) -> list[int]:
        return self._chats.prompt([{"role": "user", "content": question}])


def body_in(function: HeldOutFunction, answer: str) -> tuple[str, bool]:
    """Returns the body that an answer gives: behind the head in its first code block, as deep as in the file.

    An answer without a code block is taken as code, one without the head as the body alone.

    Returns:
        The body, and whether it has its end in the answer: of the code block, or of the function by its grammar.
    """
    pieces = _FENCE.split(answer, maxsplit=1)
    block, closing, _ = pieces[-1].partition("```")
    head = [line for line in function.prefix[function.header :].split("\n") if line.strip()]
    lines = block.split("\n")
    begin = next((number for number, line in enumerate(lines) if head and line.strip() == head[0].strip()), None)
    if begin is not None:
        # A docstring may have been left out or written anew: the body is behind what is like the head.
        known = {line.strip() for line in head}
        shift = _indent(function.prefix[: function.header].rpartition("\n")[2] + head[0]) - _indent(lines[begin])
        while begin < len(lines) and (lines[begin].strip() in known or not lines[begin].strip()):
            begin += 1
        lines = [_moved(line, shift) for line in lines[begin:]]
    body = "\n".join(lines)
    end = function_end(function, body)
    return (body, bool(closing)) if end is None else (body[:end], True)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _moved(line: str, shift: int) -> str:
    if not line.strip():
        return line
    return " " * shift + line if shift > 0 else line[min(-shift, _indent(line)) :]
