"""Lets a model write the bodies of held-out functions: from what stands before, and between before and after."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from engine.evaluation.completions import Completion, judge
from engine.evaluation.functions import HeldOutFunction, function_end
from engine.generation.batched import TOGETHER, write_together
from engine.generation.forward import open_forward
from engine.generation.text import TextStream

if TYPE_CHECKING:
    from engine.tokenization.encoder import Encoder

Task = Literal["completion", "fill-in-the-middle"]

_CHARACTERS = 6
"""Of a token, at most on average: text that is longer than this many times the budget is cut before it is encoded."""


def tasks_of(encoder: Encoder) -> tuple[Task, ...]:
    """What a tokenizer allows."""
    return ("completion",) if encoder.fim is None else ("completion", "fill-in-the-middle")


def prompt_of(function: HeldOutFunction, task: Task, encoder: Encoder, budget: int) -> list[int]:
    """Token ids that ask for the body: the file as in training, its nearest part where it is longer than `budget`."""
    before, after = function.prefix[-_CHARACTERS * budget :], function.suffix[: _CHARACTERS * budget]
    while True:
        if task == "completion":
            [ids] = encoder.encode_documents([(function.path, before)])
        else:
            [ids] = encoder.encode_middles([(function.path, before + after, (len(before), len(before)))])
        excess = len(ids) - 1 - budget
        if excess <= 0 or not before:
            return [int(token) for token in ids[:-1]][-budget:]  # without the token that ends a document
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
    """The likeliest body of each function, as the model is: with its adapter on or off.

    Args:
        model: In evaluation mode, its weights on one device.
        encoder: Its tokenizer.
        functions: What is asked for.
        task: How.
        context: Tokens that prompt and body may take together.
        max_tokens: Of a body; one that is not at its end by then is marked as it stands.
        progress: Told of functions done and in all, at every token; may raise to abandon it.
    """
    found: list[Completion] = []
    for start in range(0, len(functions), TOGETHER):
        group = functions[start : start + TOGETHER]
        notify = functools.partial(progress, len(found), len(functions), f"functions ({task})")
        notify()
        prompts = [prompt_of(function, task, encoder, max(16, context - max_tokens)) for function in group]
        texts = _write(model, encoder, prompts, max_tokens, group if task == "completion" else None, notify)
        found += [judge(function, text, ends=ends) for function, (text, ends) in zip(group, texts, strict=True)]
    progress(len(functions), len(functions), f"functions ({task})")
    return found


def _write(
    model: Any,
    encoder: Encoder,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    functions: Sequence[HeldOutFunction] | None,
    notify: Callable[[], None],
) -> list[tuple[str, bool]]:
    """What the model writes, up to a token that ends a text; up to the function's end where that is all we want.

    And whether it came to that end.
    """
    texts, counts, ended = [""] * len(prompts), [0] * len(prompts), [False] * len(prompts)
    streams = [TextStream(encoder.tokenizer, prompt) for prompt in prompts]

    def take(number: int, token: int) -> bool:
        notify()
        counts[number] += 1
        piece = streams[number].push(token)
        texts[number] += piece
        if functions is None or not piece:
            return True
        end = function_end(functions[number], texts[number])
        texts[number] = texts[number][:end]
        ended[number] = end is not None
        return end is None

    forwards = [open_forward(model, len(prompt) + max_tokens, among=len(prompts)) for prompt in prompts]
    write_together(forwards, prompts, max_tokens=max_tokens, ends=encoder.ends, take=take)
    return [(texts[i], ended[i] or counts[i] < max_tokens) for i in range(len(prompts))]
