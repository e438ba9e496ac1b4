"""Generates the bodies of held-out functions: from the prefix, and between prefix and suffix."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from engine.evaluation.asking import ANSWER_TOKENS, Asking, body_in
from engine.evaluation.completions import Completion, judge
from engine.evaluation.functions import HeldOutFunction, function_end
from engine.evaluation.lines import line_end
from engine.evaluation.retrieval import SHARE
from engine.generation.batched import TOGETHER, write_together
from engine.generation.forward import open_forward
from engine.generation.text import TextStream

if TYPE_CHECKING:
    from engine.tokenization.encoder import Encoder

Task = Literal["completion", "fill-in-the-middle", "next line"]
Before = Callable[[HeldOutFunction, int], list[int]]
"""Ids to put before a request, at most so many (engine.evaluation.retrieval)."""

_CHARACTERS = 6
"""Upper bound of characters per token on average; text beyond this many times the budget is cut before encoding."""


def tasks_of(encoder: Encoder) -> tuple[Task, ...]:
    """Returns the tasks that a tokenizer supports."""
    return ("completion",) if encoder.fim is None else ("completion", "fill-in-the-middle")


def prompt_of(function: HeldOutFunction, task: Task, encoder: Encoder, budget: int) -> list[int]:
    """Encodes the request for a body: the file as in training, cut to its nearest part where it exceeds `budget`."""
    before, after = function.prefix[-_CHARACTERS * budget :], function.suffix[: _CHARACTERS * budget]
    while True:
        if task != "fill-in-the-middle":
            [ids] = encoder.encode_documents([(function.path, before)])
        else:
            [ids] = encoder.encode_middles([(function.path, before + after, (len(before), len(before)))])
        excess = len(ids) - 1 - budget
        if excess <= 0 or not before:
            return [int(token) for token in ids[:-1]][-budget:]  # drop the end-of-document token
        cut = max(1, excess)
        if task == "fill-in-the-middle" and len(after) > len(before):
            after = after[:-cut]
        else:
            before = before[cut:]


def complete(
    model: Any,
    encoder: Encoder,
    functions: Sequence[HeldOutFunction],
    task: Task,
    *,
    context: int,
    max_tokens: int,
    progress: Callable[[int, int, str], None],
    before: Before | None = None,
) -> list[Completion]:
    """Generates the likeliest body of each function, with the model's adapter on or off as it is now.

    Args:
        model: In evaluation mode, its weights on one device.
        encoder: Its tokenizer.
        functions: Functions to complete.
        task: Completion, or fill-in-the-middle.
        context: Maximum tokens of prompt and body together.
        max_tokens: Maximum tokens of a body; a longer one is cut off and marked as it is.
        progress: Called with functions done and their total at every token; may raise to abort.
        before: What else the prompt holds; a request has no more tokens for it.
    """
    found: list[Completion] = []
    for start in range(0, len(functions), TOGETHER):
        group = functions[start : start + TOGETHER]
        notify = functools.partial(progress, len(found), len(functions), f"functions ({task})")
        notify()
        budget = max(16, context - max_tokens)
        prompts = [request_of(function, task, encoder, budget, before) for function in group]
        texts = _write(model, encoder, prompts, max_tokens, group, task, notify)
        found += [judge(function, text, ends=ends) for function, (text, ends) in zip(group, texts, strict=True)]
    progress(len(functions), len(functions), f"functions ({task})")
    return found


def ask(
    model: Any,
    encoder: Encoder,
    asking: Asking,
    functions: Sequence[HeldOutFunction],
    *,
    context: int,
    max_tokens: int,
    progress: Callable[[int, int, str], None],
) -> list[Completion]:
    """Asks for each function through the model's chat template. Arguments as for `complete`."""
    found: list[Completion] = []
    most = max_tokens + ANSWER_TOKENS
    for start in range(0, len(functions), TOGETHER):
        group = functions[start : start + TOGETHER]
        notify = functools.partial(progress, len(found), len(functions), "functions (asked)")
        notify()
        prompts = [asking.request(function, max(16, context - most)) for function in group]
        answers = _write(model, encoder, prompts, most, group, None, notify)
        for function, (answer, ends) in zip(group, answers, strict=True):
            found.append(judge(function, body_in(function, answer), ends=ends))
    progress(len(functions), len(functions), "functions (asked)")
    return found


def request_of(
    function: HeldOutFunction, task: Task, encoder: Encoder, budget: int, before: Before | None
) -> list[int]:
    """Encodes the request for a body, with what comes before the file; both together have at most `budget` tokens."""
    if before is None:
        return prompt_of(function, task, encoder, budget)
    own = prompt_of(function, task, encoder, max(16, round((1 - SHARE) * budget)))
    first = len(encoder.first) if list(own[: len(encoder.first)]) == list(encoder.first) else 0
    return [*own[:first], *before(function, budget - len(own)), *own[first:]]


def _write(
    model: Any,
    encoder: Encoder,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    functions: Sequence[HeldOutFunction],
    task: Task | None,
    notify: Callable[[], None],
) -> list[tuple[str, bool]]:
    """Generates up to an end token, or up to the end of the function or line; an answer has no other end.

    Returns each text, and whether it ended within `max_tokens`.
    """
    texts, counts, ended = [""] * len(prompts), [0] * len(prompts), [False] * len(prompts)
    streams = [TextStream(encoder.tokenizer, prompt) for prompt in prompts]

    def take(number: int, token: int) -> bool:
        notify()
        counts[number] += 1
        piece = streams[number].push(token)
        texts[number] += piece
        if task in (None, "fill-in-the-middle") or not piece:
            return True
        end = line_end(texts[number]) if task == "next line" else function_end(functions[number], texts[number])
        texts[number] = texts[number][:end]
        ended[number] = end is not None
        return end is None

    forwards = [open_forward(model, len(prompt) + max_tokens, among=len(prompts)) for prompt in prompts]
    write_together(forwards, prompts, max_tokens=max_tokens, ends=encoder.ends, take=take)
    return [(texts[i], ended[i] or counts[i] < max_tokens) for i in range(len(prompts))]
