"""Held-out files to score models on, as windows and as text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from engine.data.pairs import PairWindows
from engine.data.windows import Windows
from engine.evaluation.functions import SourceText

if TYPE_CHECKING:
    from engine.data.dataset import Dataset
    from engine.data.store import FileEntry
    from engine.tokenization.encoder import Encoder


@dataclass(frozen=True)
class HeldOut:
    """Files that training never saw, concatenated in a token stream, and windows over it."""

    windows: Windows
    tokens: npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
    "The token stream. Shape (tokens,)."
    files: tuple[FileEntry, ...]
    offsets: npt.NDArray[np.int64]
    "First token of each file, and the end of the stream. Shape (files + 1,)."

    @classmethod
    def of(cls, dataset: Dataset) -> HeldOut:
        """Returns the files that a run holds out."""
        store, first = dataset.store, len(dataset.store.files) - dataset.summary.held_out_files
        offsets = store.offsets()[first:]
        # Of a pair of answers the chosen one says how well the model predicts.
        windows = dataset.held_out.chosen if isinstance(dataset.held_out, PairWindows) else dataset.held_out
        return cls(windows, store.tokens[offsets[0] :], store.files[first:], offsets - offsets[0])

    @classmethod
    def whole(cls, dataset: Dataset, context: int, *, together: bool) -> HeldOut:
        """Returns all files of a repository that no run has trained on."""
        store = dataset.store
        windows = Windows(store.tokens, context, store.layout(), together=together)
        return cls(windows, store.tokens, store.files, store.offsets())

    def file_numbers(self, index: int, length: int) -> npt.NDArray[np.int64]:
        """Returns the file number of each of the first `length` tokens of a window. Shape (length,)."""
        places = self.windows.places(index)[:length]
        numbers: npt.NDArray[np.int64] = np.searchsorted(self.offsets, places, side="right") - 1
        return numbers

    def texts(self, encoder: Encoder) -> Iterator[SourceText]:
        """Yields the files as the model reads them, with secrets masked."""
        for number, file in enumerate(self.files):
            ids = self.tokens[self.offsets[number] : self.offsets[number + 1]].tolist()
            yield SourceText(file.path, file.language, encoder.text_of(ids))


def training_texts(dataset: Dataset, encoder: Encoder) -> Iterator[SourceText]:
    """Yields the files that a run trains on as the model reads them, with secrets masked."""
    store = dataset.store
    offsets = store.offsets()
    for number in range(len(store.files) - dataset.summary.held_out_files):
        file = store.files[number]
        ids = store.tokens[offsets[number] : offsets[number + 1]].tolist()
        yield SourceText(file.path, file.language, encoder.text_of(ids))
