"""Several sources in one run by shares of its tokens, and what each source holds.

Every source is packed into windows of its own. The windows are taken in turn, so that the share of each source holds
from the beginning of a run to its end, within one window. A pass over the data is as long with shares as without: a
source with a larger share than it has tokens is seen several times in it, one with a smaller share only in part, and
goes on where it was in the next pass.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engine.data.history import LANGUAGE as DIFF
from engine.data.rows import Row
from engine.errors.data import MIXTURE_INVALID
from engine.home_folder import expand_home

if TYPE_CHECKING:
    import numpy.typing as npt

    from engine.config import DataSection
    from engine.data.collect import SourceFile
    from engine.data.store import TokenStore

CODE, HISTORY, DATA_SETS = "code", "history", "datasets"
"Names of all repositories' files, of all commits, and of all data sets."
Orders = Callable[[int, int], "npt.NDArray[np.int64]"]
"Number of windows, number of the pass → their order."
_REMEDY = "give every source a share, as in data.mixture=[code=0.6, chats.jsonl=0.4]"


@dataclass(frozen=True, kw_only=True)
class SourceFigures:
    """One source's part of the data. Tokens are counted where no document is cut."""

    name: str
    documents: int
    "Training ones."
    tokens: int
    loss_tokens: int
    held_out_tokens: int
    held_out_loss_tokens: int
    share: float | None = None
    "Of the tokens that a run trains on, as data.mixture says. None: what its tokens make."
    passes: float = 1.0
    "Times that its tokens are seen in a pass over the data."


class Mixture:
    """The sources of a configuration, and their shares where data.mixture gives them.

    Attributes:
        names: Of the sources; without shares each repository's code, the history and each data set.
        shares: Of each source, 1 together. None: none are given.

    Raises:
        EliteError: MIXTURE_INVALID.
    """

    def __init__(self, data: DataSection) -> None:
        code = {_real(path): path for path in data.repositories}
        sets = {_real(path): path for path in data.datasets}
        known = [*code.values(), *([HISTORY] if data.history and code else []), *sets.values()]
        entries = [entry.rpartition("=")[::2] for entry in data.mixture]
        self.names = tuple(dict.fromkeys(known if not entries else [name for name, _ in entries]))
        self.shares: tuple[float, ...] | None = None
        if entries:
            if len(self.names) < len(entries):
                raise MIXTURE_INVALID(problem="it names a source twice", remedy=_REMEDY)
            self.shares = _shares([(name, value) for name, value in entries])
        named = {name: number for number, name in enumerate(self.names)}
        used: set[int] = set()

        def number_of(path: Path | None, given: str, group: str) -> int:
            forms = [given, *([] if path is None else [str(path), path.name, path.name.partition(".")[0]]), group]
            found = next((named[form] for form in forms if form in named), None)
            if found is None:
                problem = f"it gives no share to {given}"
                raise MIXTURE_INVALID(problem=problem, remedy=_REMEDY)
            used.add(found)
            return found

        self._code = {path: number_of(path, given, CODE) for path, given in code.items()}
        self._history = number_of(None, HISTORY, HISTORY) if data.history and code else None
        self._sets = {path: number_of(path, given, DATA_SETS) for path, given in sets.items()}
        if unused := sorted(set(range(len(self.names))) - used):
            groups = [*([CODE] if code else []), *([DATA_SETS] if sets else [])]
            shown = ", ".join(dict.fromkeys([*groups, *known]))
            problem = f"{self.names[unused[0]]!r} is no source of this run"
            raise MIXTURE_INVALID(problem=problem, remedy=f"its sources are {shown}")

    def number(self, file: SourceFile) -> int:
        """Number of the source that a file, commit or row is of."""
        if isinstance(file, Row):
            return self._sets[file.repository]
        if file.language == DIFF and file.alone and self._history is not None:
            return self._history
        return self._code[file.repository]

    def figures(
        self, store: TokenStore, files: Sequence[SourceFile], held_out: int, windows: Mapping[int, int] | None
    ) -> tuple[SourceFigures, ...]:
        """What each source holds.

        Args:
            store: Of the data.
            files: In the store's order.
            held_out: How many of them are held out, at the end.
            windows: Tokens of each source in the training windows, where there are shares.

        Raises:
            EliteError: MIXTURE_INVALID, for a source without a training window.
        """
        layout = store.layout()
        starts = layout.documents.tolist()
        ends = [*starts[1:], len(store.tokens)]
        border = int(store.offsets()[len(files) - held_out])
        of_document = dict(zip(store.offsets().tolist(), map(self.number, files), strict=False))
        counts = np.zeros((len(self.names), 2, 3), dtype=np.int64)
        for start, end in zip(starts, ends, strict=True):
            predicted = end - start - 1
            if store.learnt is not None:
                predicted = int(np.count_nonzero(store.learnt.among(start + 1, max(end, start + 1))))
            counts[of_document[start], int(start >= border)] += (1, end - start, predicted)
        found = []
        in_all = 0 if windows is None else sum(windows.values())
        for number, (name, (train, kept)) in enumerate(zip(self.names, counts.tolist(), strict=True)):
            share = None if self.shares is None else self.shares[number]
            passes = 1.0
            if share is not None and windows is not None:
                if not windows.get(number):
                    problem = f"{name} has nothing to train on"
                    raise MIXTURE_INVALID(problem=problem, remedy="leave it out, or look at `engine data`")
                passes = share * in_all / windows[number]
            found.append(
                SourceFigures(
                    name=name,
                    documents=train[0],
                    tokens=train[1],
                    loss_tokens=train[2],
                    held_out_tokens=kept[1],
                    held_out_loss_tokens=kept[2],
                    share=share,
                    passes=passes,
                )
            )
        return tuple(found)


def described(source: SourceFigures) -> str:
    """A sentence on a source that has a share."""
    return (
        f"{source.share:.1%} of the tokens are from {source.name}: {source.tokens:,} tokens, of which "
        f"{source.loss_tokens:,} count in the loss, seen {source.passes:.3g} times in a pass"
    )


def _real(path: str) -> Path:
    return Path(os.path.realpath(expand_home(path)))


def _shares(entries: Iterable[tuple[str, str]]) -> tuple[float, ...]:
    values = []
    for name, text in entries:
        try:
            value = float(text)
        except ValueError:
            value = 0.0
        if not 0 < value < float("inf"):
            problem = f"the share of {name} is {text!r}, not a number above 0"
            raise MIXTURE_INVALID(problem=problem, remedy=_REMEDY)
        values.append(value)
    return tuple(value / sum(values) for value in values)


class Turns:
    """Which source comes next, so that each has its share of the tokens at any time, within a window.

    Args:
        shares: Of each source.
    """

    def __init__(self, shares: Sequence[float]) -> None:
        self._shares = shares
        self._taken = [0.0] * len(shares)

    def next(self, among: Sequence[int]) -> int:
        """The source, of those that have windows, which is furthest behind its share."""
        return min(among, key=lambda number: (self._taken[number] / self._shares[number], number))

    def took(self, number: int, tokens: int) -> None:
        """Counts a window."""
        self._taken[number] += tokens


def mixed(
    shares: Sequence[float], windows: Sequence[npt.NDArray[np.int64]], lengths: npt.NDArray[np.int64], orders: Orders
) -> Iterator[int]:
    """Yields windows of all sources by their shares, without end.

    Args:
        shares: Of each source.
        windows: Numbers of each source's windows.
        lengths: Tokens of each window. Shape (all windows,).
        orders: The order of one source's windows in one pass over it, as engine.data.windows.epoch_order.
    """
    turns = Turns(shares)
    having = [number for number, own in enumerate(windows) if len(own)]
    left: list[list[int]] = [[] for _ in windows]
    passes = [0] * len(windows)
    while True:
        number = turns.next(having)
        if not left[number]:
            own = windows[number]
            left[number] = own[orders(len(own), passes[number])][::-1].tolist()
            passes[number] += 1
        index = left[number].pop()
        turns.took(number, int(lengths[index]))
        yield index
