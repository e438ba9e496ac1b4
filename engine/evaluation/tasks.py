"""Generates the bodies of held-out functions: from the prefix, and between prefix and suffix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from engine.evaluation.completions import Completion, judge
from engine.evaluation.functions import HeldOutFunction, function_end
from engine.generation.batched import ROWS, open_generator
from engine.generation.sampling import Sampling
from engine.generation.text import TextStream

if TYPE_CHECKING:
    from engine.tokenization.encoder import Encoder

Task = Literal["completion", "fill-in-the-middle"]

_CHARACTERS = 6
"""Upper bound of characters per token on average; text beyond this many times the budget is cut before encoding."""


def tasks_of(encoder: Encoder) -> tuple[Task, ...]:
    """Returns the tasks that a tokenizer supports."""
    return ("completion",) if encoder.fim is None else ("completion", "fill-in-the-middle")


def prompt_of(function: HeldOutFunction, task: Task, encoder: Encoder, budget: int) -> list[int]:
    """Encodes the request for a body: the file as in training, cut to its nearest part where it exceeds `budget`."""
    before, after = function.prefix[-_CHARACTERS * budget :], function.suffix[: _CHARACTERS * budget]
    while True:
        if task == "completion":
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
) -> list[Completion]:
    """Generates the likeliest body of each function, with the model's adapter on or off as it is now.

    Args:
        model: In evaluation mode, its weights on one device.
        encoder: Its tokenizer.
        functions: Functions to complete.
        task: Completion, or fill-in-the-middle.
        context: Maximum tokens of prompt and body together.
        max_tokens: Maximum tokens of a body; a longer one is cut off and marked as it is.
        progress: Called with functions done and their total at every step; may raise to abort.
    """
    what, done = f"functions ({task})", 0

    def report(ended: int) -> None:
        nonlocal done
        done += ended
        progress(done, len(functions), what)

    report(0)
    prompts = [prompt_of(function, task, encoder, max(16, context - max_tokens)) for function in functions]
    texts = _write(model, encoder, prompts, max_tokens, functions if task == "completion" else None, report)
    return [judge(function, text, ends=ends) for function, (text, ends) in zip(functions, texts, strict=True)]


def _write(
    model: Any,
    encoder: Encoder,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    functions: Sequence[HeldOutFunction] | None,
    report: Callable[[int], None],
) -> list[tuple[str, bool]]:
    """Generates up to an end token, or up to the function's end where `functions` is given.

    Args:
        model, encoder, max_tokens: As in `complete`.
        prompts: Token ids of each request.
        functions: Functions that end their own text.
        report: Called with the number of texts that ended, at every step.

    Returns:
        Each text, and whether it ended within `max_tokens`.
    """
    texts, ended = [""] * len(prompts), [False] * len(prompts)
    streams = [TextStream(encoder.tokenizer, prompt) for prompt in prompts]
    sampling = Sampling(max_tokens=max_tokens)
    # The longest prompts first: a long one that came last would be decoded alone.
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    capacity = max((len(prompt) for prompt in prompts), default=0) + max_tokens
    with open_generator(model, capacity=capacity, rows=min(ROWS, len(prompts)), ends=encoder.ends) as generator:
        numbers = {generator.submit(prompts[i], sampling): i for i in order}
        while generator.busy:
            events = generator.step()
            for number, token, finished in events:
                i = numbers[number]
                ended[i] |= finished == "end token"
                piece = "" if token is None else streams[i].push(token)
                texts[i] += piece
                if functions is None or not piece:
                    continue
                if (end := function_end(functions[i], texts[i])) is not None:
                    texts[i], ended[i] = texts[i][:end], True
                    generator.cancel(number)
            report(sum(event.finished is not None for event in events))
    return list(zip(texts, ended, strict=True))
