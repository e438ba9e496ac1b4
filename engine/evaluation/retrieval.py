"""Adds a repository's training files to a prompt: the snippets nearest to it, or whole files as far as they go.

A model that is given pieces of the repository is what an adapter has to be better than; published comparisons find
that retrieval often helps more than fine-tuning, and both together most (arXiv 2303.12570, 2402.01017).
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.evaluation.functions import HeldOutFunction, SourceText

if TYPE_CHECKING:
    from engine.tokenization.encoder import Encoder

LINES, STRIDE = 24, 12
"""Lines of a snippet, and between the starts of two."""
QUERY_LINES = 24
"Last lines before the body, which the snippets are to resemble."
SHARE = 0.5
"Of a prompt's tokens, for what is retrieved; the file itself has the rest."
K1, B = 1.5, 0.75
"""BM25's saturation of a count, and its correction for long snippets (Robertson and Zaragoza 2009, section 3)."""
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


@dataclass(frozen=True)
class Snippet:
    """Some lines of a file."""

    path: str
    text: str


def words_of(text: str) -> list[str]:
    """Splits text into lower-case words; parts of names count by themselves: `readHTTPBody` is read, http, body."""
    return [word.lower() for word in _WORD.findall(text)]


class Bm25:
    """Okapi BM25 over a few thousand texts, by an inverted index."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Indexes the texts."""
        counts = [Counter(words_of(text)) for text in texts]
        lengths = [sum(count.values()) for count in counts]
        mean = sum(lengths) / max(1, len(lengths)) or 1.0
        holding = Counter(word for count in counts for word in count)
        self._weights: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for number, (count, length) in enumerate(zip(counts, lengths, strict=True)):
            for word, times in count.items():
                rarity = math.log(1 + (len(texts) - holding[word] + 0.5) / (holding[word] + 0.5))
                weight = rarity * times * (K1 + 1) / (times + K1 * (1 - B + B * length / mean))
                self._weights[word].append((number, weight))

    def ranked(self, query: str) -> list[int]:
        """Returns the numbers of the texts that share a word with the query, the best first."""
        scores: dict[int, float] = defaultdict(float)
        for word, times in Counter(words_of(query)).items():
            for number, weight in self._weights.get(word, ()):
                scores[number] += times * weight
        return sorted(scores, key=lambda number: (-scores[number], number))


class RepositoryPrompts:
    """Puts text of the training files before a function's own file."""

    def __init__(self, files: Iterable[SourceText], encoder: Encoder) -> None:
        """Takes the files that training has seen; held-out ones would give the answer away."""
        self._files, self._encoder = list(files), encoder
        self._snippets = [snippet for file in self._files for snippet in snippets_of(file)]
        self._index = Bm25([snippet.text for snippet in self._snippets])

    def snippets(self, function: HeldOutFunction, budget: int) -> list[int]:
        """Returns the ids of the snippets most like the function's last lines, the best last; at most `budget`."""
        query = "\n".join(function.prefix.split("\n")[-QUERY_LINES:])
        chosen = (self._snippets[number] for number in self._index.ranked(query))
        return self._ids(chosen, budget)

    def files(self, function: HeldOutFunction, budget: int) -> list[int]:
        """Returns the ids of whole files, those nearest in the tree last; the farthest is cut to fit `budget`."""

        def apart(file: SourceText) -> tuple[int, str]:
            here, there = file.path.split("/"), function.path.split("/")
            common = sum(
                1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(here, there, strict=False))
            )
            return len(here) + len(there) - 2 * common, file.path

        nearest = (Snippet(file.path, file.text) for file in sorted(self._files, key=apart))
        return self._ids(nearest, budget, cut=True)

    def _ids(self, chosen: Iterable[Snippet], budget: int, *, cut: bool = False) -> list[int]:
        """Encodes the first of `chosen` that fit, the first of them last, as documents without ends."""
        found: list[list[int]] = []
        left, misses = budget, 0
        first = len(self._encoder.first)
        for snippet in chosen:
            [encoded] = self._encoder.encode_documents([(snippet.path, snippet.text + "\n")])
            ids = [int(token) for token in encoded[first:-1]]
            if len(ids) > left:
                if cut:
                    found.append(ids[len(ids) - left :])
                    break
                misses += 1
                if misses > 8:
                    break
                continue
            found.append(ids)
            left -= len(ids)
        return [token for ids in reversed(found) for token in ids]


def snippets_of(file: SourceText) -> Iterable[Snippet]:
    """Cuts a file into overlapping snippets."""
    lines = file.text.split("\n")
    for start in range(0, max(1, len(lines) - LINES + STRIDE), STRIDE):
        text = "\n".join(lines[start : start + LINES])
        if text.strip():
            yield Snippet(file.path, text)
