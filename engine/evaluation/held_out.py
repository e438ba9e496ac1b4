"""What models are scored on: windows over files that training never saw, and those files as text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from engine.data.windows import Windows
from engine.evaluation.functions import SourceText

if TYPE_CHECKING:
    from engine.data.dataset import Dataset
    from engine.data.store import FileEntry
    from engine.tokenization.encoder import Encoder


@dataclass(frozen=True)
class HeldOut:
    """Files, one after the other in a stream of tokens, and windows over it."""

    windows: Windows
    tokens: npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
    "The stream. Shape (tokens,)."
    files: tuple[FileEntry, ...]
    offsets: npt.NDArray[np.int64]
    "First token of each file, and the end. Shape (files + 1,)."

    @classmethod
    def of(cls, dataset: Dataset) -> HeldOut:
        """The files that a run holds out."""
        store, first = dataset.store, len(dataset.store.files) - dataset.summary.held_out_files
        offsets = store.offsets()[first:]
        return cls(dataset.held_out, store.tokens[offsets[0] :], store.files[first:], offsets - offsets[0])

    @classmethod
    def whole(cls, dataset: Dataset, context: int, *, together: bool) -> HeldOut:
        """All files of a repository that no run has seen."""
        store = dataset.store
        windows = Windows(store.tokens, context, store.layout(), together=together)
        return cls(windows, store.tokens, store.files, store.offsets())

    def file_numbers(self, index: int, length: int) -> npt.NDArray[np.int64]:
        """Number of the file of each of the first `length` tokens of a window. Shape (length,)."""
        places = self.windows.places(index)[:length]
        numbers: npt.NDArray[np.int64] = np.searchsorted(self.offsets, places, side="right") - 1
        return numbers

    def texts(self, encoder: Encoder) -> Iterator[SourceText]:
        """The files as the model reads them, secrets masked."""
        for number, file in enumerate(self.files):
            ids = self.tokens[self.offsets[number] : self.offsets[number + 1]].tolist()
            yield SourceText(file.path, file.language, encoder.text_of(ids))
