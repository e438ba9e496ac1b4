"""Runs a recurrent mixer over the documents of packed tokens, so that no state crosses a document's border."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - PyTorch's own name for it

from engine.models.recurrent_mixers import Call, RecurrentMixer
from engine.streaming.mixer_cache import MixerCache, States


def borders_within(start: int, stop: int, document_starts: Sequence[int]) -> list[int]:
    """Lists where the parts of [start, stop) begin that belong to one document each, and `stop`."""
    within = slice(bisect_right(document_starts, start), bisect_left(document_starts, stop))
    return [start, *document_starts[within], stop]


def mix_documents(
    call: Call, x: Tensor, borders: Sequence[int], before: States, *, continues: bool
) -> tuple[Tensor, States]:
    """Computes a mixer's output for tokens of one document after another.

    Args:
        call: The mixer's own forward.
        x: (1, tokens, hidden).
        borders: As `borders_within` lists them for the tokens' positions.
        before: States that the first document begins with; empty at its start.
        continues: Whether the last document goes on after these tokens.

    Returns:
        The output, (1, tokens, hidden), and the states after the last token, empty where it ends its document.
    """
    outputs, after = [], before
    for number, (start, stop) in enumerate(pairwise(borders)):
        part = x[:, start - borders[0] : stop - borders[0]]
        ends = number + 2 < len(borders) or not continues
        cache = MixerCache(before if number == 0 else None)
        # Kernels for single tokens have no backward. Another token behind it changes nothing before it, only the
        # states after it, which nobody reads where the document ends.
        lone = ends and stop - start == 1
        y = call(F.pad(part, (0, 0, 0, 1)) if lone else part, cache)
        outputs.append(y[:, :1] if lone else y)
        after = {} if ends else {**cache.before, **cache.after}
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)), after


class PackedMixers:
    """Keeps the documents of a whole sequence apart in its recurrent mixers (engine.models.recurrent_mixers.routed).

    Args:
        document_starts: First positions of the documents, ascending from 0.
        tokens: Length of the sequence.
    """

    def __init__(self, document_starts: Sequence[int], tokens: int) -> None:
        self._borders = borders_within(0, tokens, document_starts)

    def mix(self, mixer: RecurrentMixer, call: Call, x: Tensor) -> Tensor:  # noqa: ARG002
        """See MixerRunner."""
        parts = x.split([stop - start for start, stop in pairwise(self._borders)], dim=1)
        return torch.cat([call(part, None) for part in parts], dim=1)
