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


def probabilities(logits: Tensor, temperature: float | Tensor, top_p: float | Tensor) -> Tensor:
    """Returns the probabilities that a token is drawn by. Shape (..., vocabulary), like `logits`; fp64.

    Nucleus sampling (arXiv 1904.09751) keeps the token that passes `top_p`, so that there always is one.

    Args:
        logits: Shape (..., vocabulary).
        temperature: Divisor of the logits, above 0; may be of shape (..., 1).
        top_p: Probability of the nucleus; 1 keeps every token. May be of shape (..., 1).
    """
    chances = (logits.double() / temperature).softmax(-1)
    if isinstance(top_p, float | int) and top_p >= 1:
        return chances
    ordered, order = chances.sort(dim=-1, descending=True, stable=True)
    bound = torch.as_tensor(top_p, dtype=torch.float64, device=chances.device)
    # Rounded sums pass 1 before the last tokens, which a bound of 1 keeps.
    kept = (ordered.cumsum(-1) - ordered < bound) | (bound >= 1)
    kept[..., 0] = True
    chances = torch.zeros_like(chances).scatter(-1, order, ordered * kept)
    return chances / chances.sum(-1, keepdim=True)


def choose(logits: Tensor, samplings: Sequence[Sampling], numbers: Sequence[float]) -> Tensor:
    """Chooses the next token of each row; returns (rows,) int64 on the logits' device, without waiting for it.

    A token is drawn where the sum of the probabilities passes the row's own number, so that a prompt's text depends
    on its seed and not on the prompts beside it.

    Args:
        logits: Shape (rows, vocabulary).
        samplings: Settings of each row.
        numbers: A number of each row, in [0, 1), from its own generator.
    """
    greedy = logits.argmax(-1)
    if all(sampling.temperature <= 0 for sampling in samplings):
        return greedy
    columns = [(s.temperature, s.top_p, number) for s, number in zip(samplings, numbers, strict=True)]
    table = torch.tensor(columns, dtype=torch.float64)
    if logits.is_cuda:
        table = table.pin_memory().to(logits.device, non_blocking=True)
    temperature, top_p, number = (column[:, None] for column in table.unbind(1))
    drawn_by = probabilities(logits, torch.where(temperature > 0, temperature, 1.0), top_p)
    sums = drawn_by.cumsum(-1)
    # The largest number below 1 could round to the whole sum, which no token passes.
    drawn = torch.searchsorted(sums, number.clamp(max=1 - 2**-40) * sums[:, -1:], right=True)
    return torch.where(temperature > 0, drawn, greedy[:, None])[:, 0]


class Draws:
    """Numbers in [0, 1) of one sequence, which its seed alone decides."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self) -> float:
        """Draws the next number."""
        return float(torch.rand((), generator=self._generator, dtype=torch.float64))


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
    draw = Draws(sampling.seed)
    step = torch.tensor(prompt, dtype=torch.long)
    for _ in range(sampling.max_tokens):
        logits = forward.advance(step)
        token = int(choose(logits[None], [sampling], [draw()]))
        if token in ends:
            return
        yield token
        step = torch.tensor([token])
