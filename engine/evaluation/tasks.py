"""Generates the bodies of held-out functions: from the prefix, and between prefix and suffix."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from engine.evaluation.asking import ANSWER_TOKENS, Asking, body_in
from engine.evaluation.completions import Completion, judge
from engine.evaluation.functions import HeldOutFunction, function_end
from engine.evaluation.lines import line_end
from engine.evaluation.retrieval import SHARE
from engine.generation.batched import ROWS, open_generator
from engine.generation.sampling import Sampling
from engine.generation.text import TextStream

if TYPE_CHECKING:
    from engine.tokenization.encoder import Encoder

Task = Literal["completion", "fill-in-the-middle", "next line"]
Before = Callable[[HeldOutFunction, int], list[int]]
"""Ids to put before a request, at most so many (engine.evaluation.retrieval)."""

LIKELIEST = Sampling()
"""Greedy text."""
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
    drawn: Sampling = LIKELIEST,
) -> list[Completion]:
    """Generates a body of each function, with the model's adapter on or off as it is now.

    Args:
        model: In evaluation mode, its weights on one device.
        encoder: Its tokenizer.
        functions: Functions to complete.
        task: Completion, or fill-in-the-middle.
        context: Maximum tokens of prompt and body together.
        max_tokens: Maximum tokens of a body; a longer one is cut off and marked as it is.
        progress: Called with functions done and their total at every step; may raise to abort.
        before: What else the prompt holds; a request has no more tokens for it.
        drawn: Temperature, nucleus and seed of drawn text. The n-th function's numbers depend on seed and n alone.
    """
    budget = max(16, context - max_tokens)
    prompts = [request_of(function, task, encoder, budget, before) for function in functions]
    report = _counting(progress, len(functions), f"functions ({task})")
    texts = _write(model, encoder, prompts, dataclasses.replace(drawn, max_tokens=max_tokens), functions, task, report)
    return [judge(function, text, ends=ends) for function, (text, ends) in zip(functions, texts, strict=True)]


def ask(
    model: Any,
    encoder: Encoder,
    asking: Asking,
    functions: Sequence[HeldOutFunction],
    *,
    context: int,
    max_tokens: int,
    progress: Callable[[int, int, str], None],
    drawn: Sampling = LIKELIEST,
) -> list[Completion]:
    """Asks for each function through the model's chat template. Arguments as for `complete`."""
    most = max_tokens + ANSWER_TOKENS
    prompts = [asking.request(function, max(16, context - most)) for function in functions]
    report = _counting(progress, len(functions), "functions (asked)")
    answers = _write(model, encoder, prompts, dataclasses.replace(drawn, max_tokens=most), functions, None, report)
    found = [(*body_in(function, answer), ends) for function, (answer, ends) in zip(functions, answers, strict=True)]
    # What follows the body in an answer may be cut off.
    return [
        judge(function, body, ends=whole or ends)
        for function, (body, whole, ends) in zip(functions, found, strict=True)
    ]


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
    sampling: Sampling,
    functions: Sequence[HeldOutFunction],
    task: Task | None,
    report: Callable[[int], None],
) -> list[tuple[str, bool]]:
    """Generates up to an end token, or up to the end of the function or line; an answer has no other end.

    Args:
        model, encoder: As in `complete`.
        prompts: Token ids of each request.
        sampling: Settings of all; each adds its index to the seed.
        functions: Functions that end their own text.
        report: Called with the number of texts that ended, at every step.

    Returns:
        Each text, and whether it ended within the sampling's `max_tokens`.
    """
    texts, ended = [""] * len(prompts), [False] * len(prompts)
    streams = [TextStream(encoder.tokenizer, prompt) for prompt in prompts]
    # The longest prompts first: a long one that came last would be decoded alone.
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    capacity = max((len(prompt) for prompt in prompts), default=0) + sampling.max_tokens
    with open_generator(model, capacity=capacity, rows=min(ROWS, len(prompts)), ends=encoder.ends) as generator:
        numbers = {
            generator.submit(prompts[i], dataclasses.replace(sampling, seed=sampling.seed + i)): i for i in order
        }
        while generator.busy:
            events = generator.step()
            for number, token, finished in events:
                i = numbers[number]
                ended[i] |= finished == "end token"
                piece = "" if token is None else streams[i].push(token)
                piece += "" if finished is None else streams[i].end()
                texts[i] += piece
                if not piece or (end := _end_of(task, functions[i], texts[i])) is None:
                    continue
                texts[i], ended[i] = texts[i][:end], True
                generator.cancel(number)
            report(sum(event.finished is not None for event in events))
    return list(zip(texts, ended, strict=True))


def _end_of(task: Task | None, function: HeldOutFunction, text: str) -> int | None:
    """Returns where a text ends by itself; None while it does not."""
    if task in (None, "fill-in-the-middle"):
        return None
    return line_end(text) if task == "next line" else function_end(function, text)


def _counting(progress: Callable[[int, int, str], None], total: int, what: str) -> Callable[[int], None]:
    """Returns a callback that is told how many more are done."""
    done = 0

    def report(ended: int) -> None:
        nonlocal done
        done += ended
        progress(done, total, what)

    report(0)
    return report
