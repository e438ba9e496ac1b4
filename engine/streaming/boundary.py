"""A streamed step between two layers of its backward pass: the smallest state that it can go on from.

Everything below the boundary follows from the weights and the tokens by another forward pass, so that only the
gradient stream has to be kept: context × hidden numbers, instead of as many for each layer. At 1M tokens of a 1.5B
model that is 3 GiB instead of 86, at the price of a forward pass over the layers that are left, when it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class BackwardPoint:
    """The state of one sequence's step. The parameters' gradients so far belong to it, and are kept by their owner.

    G was taken at the hidden states of the forward pass before. The layers below compute these again, with the same
    random numbers only if these are drawn for the same tiles.
    """

    layer: int
    "The layers from this one up are done; G is dL/d(this layer's input). The number of layers: only the loss is done."
    loss_sum: float
    "Summed cross-entropy, in nats."
    seed: int
    "What random numbers of the embedding and the layers follow from (engine.randomness)."
    drawn_tile: int | None
    "Tokens of the tiles that random numbers were drawn for; None where none were drawn, and any tile may go on."
    generator: Tensor
    "torch's CPU generator after the seed was drawn: the next window's seed follows. No other generator's state counts."
    gradient: Callable[[], Iterator[Tensor]]
    "Tiles of G in order, (tile, hidden), on the host; each is valid until the next is asked for."

    def suits(self, tile: int, context: int) -> bool:
        """Whether a step of such tiles over a sequence of so many tokens may go on from here."""
        return self.drawn_tile in (None, min(tile, context))


def retile(pieces: Iterator[Tensor], rows: Sequence[int]) -> Iterator[Tensor]:
    """The same rows in pieces of other lengths: the plan may have another tile by now.

    Args:
        pieces: (any, hidden), in order; each is read before the next is asked for, which may take its place.
        rows: Length of each piece wanted; together as many rows as there are.

    Raises:
        ValueError: there are fewer rows.
    """
    piece, used = torch.empty(0), 0
    for wanted in rows:
        parts: list[Tensor] = []
        missing = wanted
        while missing:
            if used == len(piece):
                following = next(pieces, None)
                if following is None:
                    raise ValueError(f"the saved gradient stream is {missing} rows too short")
                piece, used = following, 0
            part = piece[used : used + missing]
            parts.append(part.clone() if len(part) < missing else part)
            used, missing = used + len(part), missing - len(part)
        yield parts[0] if len(parts) == 1 else torch.cat(parts)
