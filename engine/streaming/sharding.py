"""Divides a sequence among the ranks that share a streamed step; a single process takes all of it."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from engine.streaming.passes import LayerPasses, Passes
from engine.streaming.sequence_run import SequenceRun, StepRequest
from engine.streaming.streamed_model import StreamedModel


class Shard:
    """The part of a sequence that this process computes; here all of it.

    Args:
        request: The tokens and labels of the part.
    """

    keeps_graphs = True
    "Whether the layers of a single tile may keep their graph (StreamPlan.keep_layers)."

    def __init__(self, request: StepRequest) -> None:
        self.request = request
        self.positions: Tensor | None = None
        "Positions of the tokens in their documents, (tokens,), on the device; None: `document_starts` gives them."

    def seed(self, of_sequence: int) -> int:
        """Derives the seed of the part's random numbers from that of the sequence."""
        return of_sequence

    def scale(self, of_sequence: float) -> float:
        """Derives the factor of the part's loss from that of the sequence's."""
        return of_sequence

    def total(self, loss_sum: float | Tensor) -> float | Tensor:
        """Computes the summed loss of the sequence from that of the part, a scalar. Every rank calls it."""
        return loss_sum

    def passes(self, model: StreamedModel, run: SequenceRun) -> Passes:  # noqa: ARG002
        """Makes the passes over the part, once the buffers are prepared."""
        return LayerPasses(model)


class Sharding(Protocol):
    """Gives a process its part of each sequence."""

    def shard(self, request: StepRequest, device: torch.device) -> Shard:
        """Returns the part of a sequence that this process computes on `device`."""


class Unsharded:
    """Gives a single process all of each sequence."""

    def shard(self, request: StepRequest, _: torch.device) -> Shard:
        """See Sharding."""
        return Shard(request)
