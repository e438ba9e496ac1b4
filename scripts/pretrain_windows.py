"""Cuts windows to pretrain the embedded model on: stretches of packages, and fragments with their middle at the end.

The token ids are those that `scripts/embedded_corpus.py tokens` writes. Every window begins with the path line of the
file that it starts in, as a prompt of the engine does whose file is cut to the part nearest to the cursor.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import math
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

FRAGMENT = (64, 1600)
"Tokens of a fragment whose middle is moved: shortest and longest, uniform in the logarithm."
MIDDLE = (2, 256)
"Tokens of a middle, likewise."
WHOLE_LINES = 0.7
"Share of middles that begin and end at line ends, as a function's body does."
AHEAD = 4
"Batches that are cut while the GPU works."


class Corpus:
    """Token ids of the files to train on, one after the other, and of held-out windows."""

    def __init__(self, folder: Path) -> None:
        about = json.loads((folder / "tokens.json").read_text(encoding="utf-8"))
        # One file, or its parts in the order of their names (split -b): a machine may take them one by one.
        packed = b"".join(part.read_bytes() for part in sorted(folder.glob("tokens.xz*")))
        if hashlib.sha256(packed).hexdigest() != about["sha256"]:
            raise SystemExit(f"{folder / 'tokens.xz'} is not what tokens.json describes: copy all its parts again")
        ids = np.frombuffer(lzma.decompress(packed), dtype="<u2")
        self.train = ids[: about["tokens"]]
        self.held_out = ids[about["tokens"] :].reshape(about["held_out"])
        "Shape (windows, tokens), uint16."
        self._end, self._fim = about["end"], about["fim"]
        is_line_end = np.zeros(1 << 16, dtype=bool)
        is_line_end[about["line_ends"]] = True
        self._line_ends = np.flatnonzero(is_line_end[self.train])
        ends = np.flatnonzero(self.train == self._end)
        self._begins, self._ends = np.concatenate([[0], ends[:-1] + 1]), ends
        "Of each file: its first token, and its end token."
        first = np.minimum(np.searchsorted(self._line_ends, self._begins), len(self._line_ends) - 1)
        self._texts = np.minimum(self._line_ends[first] + 1, ends)
        "Of each file: the token after its path line."
        self._last = len(self.train) - int((self._texts - self._begins).max())

    def batch(self, seed: int, step: int, windows: int, context: int, fim: float, plain: float = 0.0) -> np.ndarray:
        """Cuts the windows of one step, which follow from seed and step. Shape (windows, context + 1), uint16.

        Args:
            seed: Of the training.
            step: Number of the batch.
            windows: Of the batch.
            context: Tokens of a window, one less than it holds.
            fim: Share of windows of fragments with their middle at the end.
            plain: Share of the others that begin without a path line, as a prompt does that names no file.
        """
        random = np.random.default_rng((seed, step))
        return np.stack([self._window(random, context + 1, fim, plain) for _ in range(windows)])

    def batches(
        self, seed: int, step: int, tokens: int, fim: float, context: Callable[[int], int], plain: float = 0.0
    ) -> Iterator[np.ndarray]:
        """Yields the batches of all steps from `step` on, cut ahead by a thread.

        Args:
            seed, step, fim, plain: As in `batch`.
            tokens: Of a batch.
            context: Called with a step for the context of its windows, some steps ahead.
        """
        ready: queue.Queue[np.ndarray] = queue.Queue(AHEAD)

        def cut() -> None:
            number = step
            while True:
                length = context(number)
                ready.put(self.batch(seed, number, tokens // length, length, fim, plain))
                number += 1

        threading.Thread(target=cut, daemon=True).start()
        while True:
            yield ready.get()

    def _window(self, random: np.random.Generator, length: int, fim: float, plain: float) -> np.ndarray:
        if random.random() >= fim:
            start = int(random.integers(self._last - length))
            file = self._file_at(start)
            if plain and random.random() < plain:
                return self._without_path(random, file, length)
            head, start = self._head(file), max(start, int(self._texts[file]))
            return np.concatenate([head, self.train[start : start + length - len(head)]])
        parts: list[np.ndarray] = []
        left = length
        while left > 0:
            parts += self._moved(random)
            left = length - sum(map(len, parts))
        return np.concatenate(parts)[:length]

    def _without_path(self, random: np.random.Generator, file: int, length: int) -> np.ndarray:
        """Returns a window from a file's beginning, or from one of its lines; half of them behind an end token."""
        begin, end = int(self._texts[file]), int(self._ends[file])
        start = begin if random.random() < 0.5 else self._line_start(int(random.integers(begin, end + 1)), begin)
        start = min(start, len(self.train) - length)
        before = np.full(int(random.integers(2)), self._end, dtype="<u2")
        return np.concatenate([before, self.train[start : start + length - len(before)]])

    def _file_at(self, token: int) -> int:
        return int(np.searchsorted(self._ends, token))

    def _head(self, file: int) -> np.ndarray:
        return self.train[self._begins[file] : self._texts[file]]

    def _moved(self, random: np.random.Generator) -> list[np.ndarray]:
        """Returns a fragment of a file, drawn by length, with its middle behind what follows it."""
        file = self._file_at(int(random.integers(self._ends[-1])))
        begin, end = int(self._texts[file]), int(self._ends[file])
        begin = int(random.integers(begin, end)) if end > begin else end
        end = min(end, begin + _draw(random, *FRAGMENT))
        first = int(random.integers(begin, end)) if end > begin else end
        last = min(end, first + _draw(random, *MIDDLE))
        if random.random() < WHOLE_LINES:
            first, last = self._line_start(first, begin), self._line_end(last, end)
        prefix, suffix, middle = (np.array([token], dtype="<u2") for token in self._fim)
        tokens = self.train
        ended = np.array([self._end], dtype="<u2")
        before, after = tokens[begin:first], tokens[last:end]
        return [self._head(file), prefix, before, suffix, after, middle, tokens[first:last], ended]

    def _line_start(self, token: int, least: int) -> int:
        place = int(np.searchsorted(self._line_ends, token)) - 1
        return max(least, int(self._line_ends[place]) + 1) if place >= 0 else least

    def _line_end(self, token: int, most: int) -> int:
        place = int(np.searchsorted(self._line_ends, token))
        return min(most, int(self._line_ends[place])) if place < len(self._line_ends) else most


def _draw(random: np.random.Generator, low: int, high: int) -> int:
    return round(math.exp(random.uniform(math.log(low), math.log(high))))
