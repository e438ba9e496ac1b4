"""Marks completed functions, against the repository's own body and as a part of its file."""

from __future__ import annotations

from dataclasses import dataclass

from rapidfuzz.distance import Levenshtein

from engine.evaluation.functions import HeldOutFunction
from engine.evaluation.parsing import has_code, identifiers, parses


@dataclass(frozen=True, kw_only=True)
class Marks:
    """Marks of one completion."""

    exact: bool
    "Whether it equals the repository's body, blanks at line ends aside."
    edit_similarity: float
    "1 - Levenshtein distance over the longer length, in characters; 1 is the same text."
    identifier_hits: float | None
    "Share of the names in the true body that the completion uses too; None for a body without names."
    parses: bool
    "Whether the completion comes to an end, has any code, and the file with it is well formed."
    ends: bool
    "Whether the model ended it within its token budget."


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A function body that a model wrote."""

    text: str
    marks: Marks


def judge(function: HeldOutFunction, text: str, *, ends: bool) -> Completion:
    """Marks a function body that a model wrote."""
    truth, given = _stripped(function.body), _stripped(text)
    names = identifiers(function.body, function.grammar)
    hits = len(names & identifiers(text, function.grammar)) / len(names) if names else None
    return Completion(
        text=text,
        marks=Marks(
            exact=truth == given,
            edit_similarity=Levenshtein.normalized_similarity(truth, given),
            identifier_hits=hits,
            # An empty body below a docstring is well formed, but completes nothing. Whether the file parses with a body
            # that is cut off depends on where the limit fell.
            parses=ends
            and has_code(text, function.grammar)
            and parses(function.prefix + text + function.suffix, function.grammar),
            ends=ends,
        ),
    )


def _stripped(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip("\n").rstrip().split("\n"))
