"""State of a streamed step between two layers of its backward pass, the smallest that it can resume from.

Another forward pass recomputes everything below the boundary from the weights and the tokens. So only the gradient
stream has to be saved, which is context × hidden numbers instead of as many for each layer. At 1M tokens of a 1.5B
model that is 3 GiB instead of 86. A resumed step pays for it with a forward pass over the layers that are left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class BackwardPoint:
    """State of one sequence's step. It includes the parameters' gradients so far, which their owner keeps.

    G was taken at the hidden states of the first forward pass. The layers below recompute these, and draw the same
    random numbers only for the same tiles.
    """

    layer: int
    "The lowest layer that is done; G is dL/d(its input). The number of layers where only the loss is done."
    loss_sum: float | Tensor
    "Summed cross-entropy, in nats; a scalar on the device where it has not been read."
    seed: int
    "Seed of the random numbers of the embedding and the layers (engine.randomness)."
    drawn_tile: int | None
    "Tile length that random numbers were drawn for; None where none were drawn, so that any tile length may resume."
    generator: Tensor
    "State of torch's CPU generator after the seed was drawn, from which the next window's seed is drawn."
    gradient: Callable[[], Iterator[Tensor]]
    "Yields the tiles of G in order, (tile, hidden), on the host; each is valid until the next."

    def suits(self, tile: int, context: int) -> bool:
        """Whether a step of this tile length over a sequence of `context` tokens may resume from here."""
        return self.drawn_tile in (None, min(tile, context))


def retile(pieces: Iterator[Tensor], rows: Sequence[int]) -> Iterator[Tensor]:
    """Splits the same rows into tiles of other lengths, since the plan may have another tile length by now.

    Args:
        pieces: (any, hidden), in order; each is read before the next is requested, which may overwrite it.
        rows: Lengths of the tiles to yield; their sum is the number of rows.

    Yields:
        (length, hidden), one for each of `rows`.

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
