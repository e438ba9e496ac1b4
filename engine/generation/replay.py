"""Text that a model writes by itself, to be replayed in its own fine-tuning so that it forgets less.

A base model goes on from the beginning of a text. A model with a chat template first writes a request, from what the
template puts before one, and then answers it (as Magpie does, arXiv 2406.08464; replay of a model's own text: arXiv
2403.01244). Tokens are drawn at temperature 1, so that the text is what the model takes text to be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from engine.data.chats import Chats, find_template
from engine.generation.batched import ROWS, open_generator
from engine.generation.sampling import Sampling
from engine.randomness import derive_seed

if TYPE_CHECKING:
    from engine.generation.writer import Writer
    from engine.tokenization.encoder import Encoder

REVISION = 1
"Raised when the same arguments would give other text."
_THOUGHTS = ("<think>", "</think>")
_FRUITLESS = 10
"Rounds without a row after which a model is taken to write nothing."


class NothingWrittenError(Exception):
    """A model ends every text before its first word."""


def self_written(
    writer: Writer, *, tokens: int, longest: int, seed: int, template: str, progress: Callable[[int], None]
) -> Iterator[dict[str, Any]]:
    """Yields rows of a data set until they hold so many tokens.

    Args:
        writer: Has the base model.
        tokens: That are wanted.
        longest: Tokens of a text, of a request or of an answer at most.
        seed: Of the drawing.
        template: A chat template as data.chat_template names it, "" for the tokenizer's own, "none" for texts.
        progress: Called with the tokens so far.

    Raises:
        NothingWrittenError: the model writes nothing.
        EliteError: CHAT_TEMPLATE_UNUSABLE.
    """
    encoder = writer.encoder
    found = None if template == "none" else find_template(writer.tokenizer, encoder, template)
    chats = None if found is None else Chats(encoder, found)
    written = fruitless = number = 0
    with writer.opened("base") as model:
        drawn = _Drawn(model, encoder, seed, longest)
        while written < tokens:
            rows = list(_texts(drawn, number) if chats is None else _conversations(drawn, chats, number))
            number += ROWS
            fruitless = 0 if rows else fruitless + 1
            if fruitless == _FRUITLESS:
                raise NothingWrittenError
            for row, count in rows:
                written += count
                yield row
                if written >= tokens:
                    break
            progress(written)


class _Drawn:
    """Draws what a model writes behind prompts, some at a time."""

    def __init__(self, model: Any, encoder: Encoder, seed: int, longest: int) -> None:
        self._model, self.encoder, self._seed, self._longest = model, encoder, seed, longest

    def behind(self, prompts: Sequence[Sequence[int]], first: int, what: str) -> list[tuple[list[int], bool]]:
        """The tokens behind each prompt, and whether the model came to an end.

        Args:
            prompts: Token ids of each.
            first: Number of the first one, which its random numbers depend on.
            what: Is drawn.
        """
        if not prompts:
            return []
        tokens: list[list[int]] = [[] for _ in prompts]
        thoughts = {number for number in map(self.encoder.tokenizer.token_to_id, _THOUGHTS) if number is not None}

        capacity = max(map(len, prompts)) + self._longest
        with open_generator(self._model, capacity=capacity, ends=self.encoder.ends - thoughts) as generator:
            index = {}
            for i, prompt in enumerate(prompts):
                seed = derive_seed(self._seed, what, first + i)
                index[generator.submit(prompt, Sampling(max_tokens=self._longest, temperature=1.0, seed=seed))] = i
            while generator.busy:
                for sequence, token, _ in generator.step():
                    if token is not None:
                        tokens[index[sequence]].append(token)
        return [(found, len(found) < self._longest) for found in tokens]


def _texts(drawn: _Drawn, first: int) -> Iterator[tuple[dict[str, Any], int]]:
    prompts = [drawn.encoder.encode_prompt("")] * ROWS
    for tokens, ended in drawn.behind(prompts, first, "text"):
        text = drawn.encoder.decode(tokens)
        # The end of a text is learnt with it: one that was cut off ends behind its last whole line at least.
        kept = text if ended or "\n" not in text else text[: text.rindex("\n") + 1]
        if kept.strip():
            yield {"prompt": "", "completion": kept}, len(tokens)


def _conversations(drawn: _Drawn, chats: Chats, first: int) -> Iterator[tuple[dict[str, Any], int]]:
    asked = drawn.behind([chats.request_prompt()] * ROWS, first, "request")
    requests = [drawn.encoder.decode(tokens).strip() for tokens, ended in asked if ended]
    messages = [[{"role": "user", "content": request}] for request in requests if request]
    answers = drawn.behind([chats.prompt(one) for one in messages], first, "answer")
    for one, (tokens, ended) in zip(messages, answers, strict=True):
        answer = drawn.encoder.decode(tokens).strip()
        if answer and ended:
            yield {"messages": [*one, {"role": "assistant", "content": answer}]}, len(tokens)
