"""The mask and scores of a layer's call: window, chunks, sinks, scale."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionRule:
    """Mask and scores of one call of the attention function."""

    scale: float
    "Multiplies q kᵀ."
    window: int | None = None
    "Number of keys that a query sees; None for all."
    chunk: int | None = None
    "Tokens of a chunk, counted from a document's start; a query sees the keys of its own chunk. None for no chunks."
    sinks: Tensor | None = None
    "Score of a key of each head that has no value, (heads,); None for none."
    softcap: float | None = None
    "Bound c of the scores, which become c·tanh(s / c); None for none."

    @property
    def reach(self) -> int | None:
        """Most keys that a query sees, by window or chunk; None for all."""
        found = [limit for limit in (self.window, self.chunk) if limit is not None]
        return min(found, default=None)

    def borders(self, document_starts: Sequence[int], stop: int, start: int = 0) -> Sequence[int]:
        """Lists where parts begin that do not attend to each other: documents, and chunks up to `stop`.

        The list may leave out parts that end before `start`.
        """
        if self.chunk is None:
            return document_starts
        first, last = bisect_right(document_starts, start) - 1, bisect_left(document_starts, stop)
        ends = [*document_starts[first:last], stop]
        ends[0] += (start - ends[0]) // self.chunk * self.chunk  # chunks count from their document's start
        return [part for begin, end in pairwise(ends) for part in range(begin, end, self.chunk)]


def chunk_of(module: Any) -> int | None:
    """Reads the tokens of a chunk from an attention module's configuration; None where its layer has no chunks."""
    config, layer = getattr(module, "config", None), getattr(module, "layer_idx", None)
    kinds = getattr(config, "layer_types", None)
    if config is None or not kinds or layer is None or kinds[layer] != "chunked_attention":
        return None
    chunk: int = config.attention_chunk_size
    return chunk
