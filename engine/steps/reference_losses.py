"""Cross-entropies of preference pairs under the base model, computed once for a run and kept in its directory."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from engine.data.pairs import Pair
from engine.steps.preference_step import cross_entropies
from engine.steps.whole_step import TrainingStep

FILE_NAME = "reference.jsonl"
"""In the run directory: a pair's digest and the cross-entropies of its sides, in nats, one pair a line."""


class ReferenceLosses(Mapping[str, tuple[float, float]]):
    """The pairs that were scored under the reference, by digest. Lines are added; a torn last line is written again.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._known = path, dict(_read(path))

    def __getitem__(self, digest: str) -> tuple[float, float]:
        return self._known[digest]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def add(self, pairs: Iterator[Pair], step: TrainingStep, before_each: Callable[[int], None]) -> int:
        """Scores the pairs that are not known yet. Call it while the model is the reference.

        Args:
            pairs: Read one at a time.
            step: Scores a side.
            before_each: Called with the number of pairs that were met before; may raise to stop.

        Returns:
            The number of pairs that were scored.

        Raises:
            OSError: the disk is full or not writable.
        """
        added = 0
        whole = not self._path.exists() or self._path.read_bytes()[-1:] in (b"", b"\n")
        with self._path.open("a", encoding="utf-8") as file:
            if not whole:
                file.write("\n")
            for number, pair in enumerate(pairs):
                before_each(number)
                if pair.digest in self._known:
                    continue
                found = cross_entropies(step, pair, functools.partial(before_each, number))
                file.write(json.dumps([pair.digest, *found]) + "\n")
                file.flush()
                self._known[pair.digest] = found
                added += 1
        return added


def _read(path: Path) -> Iterator[tuple[str, tuple[float, float]]]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            digest, chosen, rejected = json.loads(line)
        except (ValueError, TypeError):
            continue  # the process ended while it wrote this line
        if isinstance(digest, str) and all(isinstance(x, float) and math.isfinite(x) for x in (chosen, rejected)):
            yield digest, (chosen, rejected)
