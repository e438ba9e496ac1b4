"""Samples the next token: the likeliest, or one drawn by its probability."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.generation.forward import Forward


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Sampling settings."""

    max_tokens: int = 256
    temperature: float = 0.0
    "Divisor of the logits; 0 takes the likeliest token."
    top_p: float = 1.0
    "Nucleus: draws only from the likeliest tokens that together have this probability (arXiv 1904.09751)."
    seed: int = 0


def probabilities(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """Returns the probabilities that a token is drawn by. Shape (vocabulary,), like `logits`; fp64.

    Nucleus sampling (arXiv 1904.09751) keeps the token that passes `top_p`, so that there always is one.

    Args:
        logits: Shape (vocabulary,).
        temperature: Divisor of the logits, above 0.
        top_p: Probability of the nucleus; 1 keeps every token.
    """
    chances = (logits.double() / temperature).softmax(-1)
    if top_p >= 1:
        return chances
    ordered, order = chances.sort(descending=True, stable=True)
    kept = ordered.cumsum(-1) - ordered < top_p
    kept[0] = True
    chances = torch.zeros_like(chances).scatter(0, order[kept], ordered[kept])
    return chances / chances.sum()


def generate(
    forward: Forward, prompt: Sequence[int], sampling: Sampling, ends: Container[int] = frozenset()
) -> Iterator[int]:
    """Yields the tokens after a prompt, each as soon as it is known, up to the first of `ends`.

    Args:
        forward: An empty sequence, with room for the prompt and `sampling.max_tokens`.
        prompt: Token ids, at least one.
        sampling: Settings; on a CPU the same seed gives the same text.
        ends: End tokens; they are not yielded.
    """
    generator = torch.Generator().manual_seed(sampling.seed)
    step = torch.tensor(prompt, dtype=torch.long)
    for _ in range(sampling.max_tokens):
        logits = forward.advance(step)
        token = choose_token(logits, sampling, generator)
        if token in ends:
            return
        yield token
        step = torch.tensor([token])


def choose_token(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Picks a token by its logits, (vocabulary,)."""
    if sampling.temperature <= 0:
        return int(logits.argmax())
    chances = probabilities(logits.cpu(), sampling.temperature, sampling.top_p)
    return int(torch.multinomial(chances, 1, generator=generator))
