"""Losses of two models on the same tokens, summed by file and position; perplexities with their intervals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from engine.evaluation.intervals import Floats, Interval, bootstrap
from engine.steps.held_out_loss import choose_windows

if TYPE_CHECKING:
    from engine.data.windows import Window
    from engine.evaluation.held_out import HeldOut
    from engine.steps.whole_step import TokenScores

FIRST_BUCKET = 1024
"""Upper end of the first position bucket, in preceding tokens; each further bucket is twice as wide."""
_BUCKETS = 16

ScoresOf = Callable[["Window"], "TokenScores"]
"""See `engine.steps.whole_step.ScoringStep.token_scores`."""


@dataclass(frozen=True)
class Guesses:
    """What a model thinks likeliest at each scored token.

    Attributes:
        places: Places of the tokens in the held-out stream, ascending. Shape (tokens,).
        likeliest: Ids. Shape (tokens,).
    """

    places: npt.NDArray[np.int64]
    likeliest: npt.NDArray[np.int64]


@dataclass(frozen=True)
class LossTally:
    """Sums of cross-entropies, in nats, and token counts, by file and position bucket.

    Attributes:
        sums, counts: Shape (files, buckets).
        guesses: Of the same tokens; None where they were not kept.
    """

    sums: Floats
    counts: Floats
    guesses: Guesses | None = None


@dataclass(frozen=True, kw_only=True)
class PerplexityRow:
    """Perplexity of both models on one part of the tokens."""

    name: str
    tokens: int
    files: int
    base: float
    tuned: float
    change: float
    "Relative change of the perplexity: -0.1 is ten percent lower."
    base_interval: Interval | None
    tuned_interval: Interval | None
    change_interval: Interval | None
    "Interval of the paired change."


def tally_losses(
    token_scores: ScoresOf, held_out: HeldOut, *, max_tokens: int, progress: Callable[[int, int, str], None]
) -> LossTally:
    """Scores at most `max_tokens` tokens, the same ones on every call.

    Args:
        token_scores: Scores one window with the model.
        held_out: The files to score.
        max_tokens: Maximum number of target tokens.
        progress: Called with windows done and their total; may raise to abort.
    """
    shape = (len(held_out.files), _BUCKETS)
    sums, counts = np.zeros(shape), np.zeros(shape)
    scored: list[npt.NDArray[np.int64]] = []
    likeliest: list[npt.NDArray[np.int64]] = []
    chosen = list(choose_windows(held_out.windows, max_tokens))
    for done, (index, window) in enumerate(chosen):
        progress(done, len(chosen), "windows")
        scores = token_scores(window)
        positions = window.positions()[1:]
        files = held_out.file_numbers(index, len(window))[1:]
        wanted = window.predicted[1:]
        cell = files[wanted], bucket_of(positions[wanted])
        np.add.at(sums, cell, scores.losses[wanted].astype(np.float64))
        np.add.at(counts, cell, 1.0)
        scored.append(held_out.windows.places(index)[1 : len(window)][wanted])
        likeliest.append(scores.likeliest[wanted])
    progress(len(chosen), len(chosen), "windows")
    places = np.concatenate([*scored, np.zeros(0, np.int64)])
    order = np.argsort(places)
    return LossTally(sums, counts, Guesses(places[order], np.concatenate([*likeliest, np.zeros(0, np.int64)])[order]))


def bucket_of(positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Returns the bucket of each preceding-token count: 0 below 1,024, 1 below 2,048, 2 below 4,096, and so on.

    Shape (tokens,) for `positions` of shape (tokens,).
    """
    doublings = np.floor(np.log2(np.maximum(positions, 1) / FIRST_BUCKET)).astype(np.int64) + 1
    return np.clip(doublings, 0, _BUCKETS - 1)


def bucket_name(bucket: int) -> str:
    """Names a bucket: 0–1K, 1–2K, 2–4K and so on."""
    return f"{0 if bucket == 0 else 2 ** (bucket - 1)}–{2**bucket}K"


def overall(base: LossTally, tuned: LossTally) -> PerplexityRow:
    """Returns the perplexities over all tokens.

    Raises:
        ValueError: no token was scored.
    """
    row = part("all", base, tuned)
    if row is None:
        raise ValueError("no token was scored")
    return row


def by_language(base: LossTally, tuned: LossTally, held_out: HeldOut) -> list[PerplexityRow]:
    """Returns a row per language, the one with the most tokens first."""
    languages = np.array([file.language for file in held_out.files])
    rows = [part(str(name), base, tuned, languages == name) for name in dict.fromkeys(languages)]
    return sorted((row for row in rows if row is not None), key=lambda row: -row.tokens)


def by_position(base: LossTally, tuned: LossTally) -> list[PerplexityRow]:
    """Returns a row per bucket of preceding tokens of the same document in the window."""
    rows = [_row(bucket_name(b), base.sums[:, b], tuned.sums[:, b], base.counts[:, b]) for b in range(_BUCKETS)]
    return [row for row in rows if row is not None]


def part(
    name: str, base: LossTally, tuned: LossTally, files: npt.NDArray[np.bool_] | None = None
) -> PerplexityRow | None:
    """Returns the perplexities over all tokens of some files, or of all; None where no token was scored."""
    chosen = slice(None) if files is None else files
    return _row(name, *(each[chosen].sum(1) for each in (base.sums, tuned.sums, base.counts)))


def _row(name: str, base: Floats, tuned: Floats, counts: Floats) -> PerplexityRow | None:
    kept = counts > 0
    base, tuned, counts = base[kept], tuned[kept], counts[kept]
    if not counts.size:
        return None
    total = counts.sum()

    def of(sums: Floats) -> Callable[[Floats], Floats]:
        return lambda weights: np.exp(np.minimum(700.0, weights @ sums / (weights @ counts)))

    def change(weights: Floats) -> Floats:
        return np.expm1((weights @ tuned - weights @ base) / (weights @ counts))

    return PerplexityRow(
        name=name,
        tokens=int(total),
        files=len(counts),
        base=math.exp(min(700.0, base.sum() / total)),
        tuned=math.exp(min(700.0, tuned.sum() / total)),
        change=math.expm1(min(700.0, (tuned.sum() - base.sum()) / total)),
        base_interval=bootstrap(len(counts), of(base)),
        tuned_interval=bootstrap(len(counts), of(tuned)),
        change_interval=bootstrap(len(counts), change),
    )
