"""One sequence in a streamed step, with its tiles, labels, progress and cancellation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.models.router_balance import BalanceSums
from engine.streaming.boundary import BackwardPoint
from engine.streaming.launch_throttle import LaunchThrottle
from engine.streaming.loss import IGNORED, labelled_positions
from engine.streaming.mixer import Mixer
from engine.streaming.positions import TileArguments


class StepCancelled(Exception):  # noqa: N818 - requested, not an error
    """Raised between two tiles when the step is cancelled; its gradients are incomplete and must be discarded."""


@dataclass(frozen=True, kw_only=True)
class TileProgress:
    """Progress of a step, in tiles of the present stage."""

    stage: str
    layer: int
    tile: int
    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class StepRequest:
    """What a step computes on; the fields are the arguments of `StreamedStep.run`."""

    token_ids: Tensor
    labels: Tensor
    coefficients: Tensor | None = None
    document_starts: Sequence[int] = (0,)
    progress: Callable[[TileProgress], None] | None = None
    cancelled: Callable[[], bool] | None = None
    boundary: Callable[[BackwardPoint], None] | None = None
    resumed: BackwardPoint | None = None
    balanced: int | None = None
    guesses: bool = False

    @property
    def context(self) -> int:
        """Number of tokens."""
        return self.token_ids.shape[0]


class SequenceRun:
    """State of one sequence within a step.

    Args:
        request: The sequence.
        tile: Tokens of a tile.
        device: The compute device.
        seed: Seed that the random numbers of its layers and its embedding are derived from.
    """

    arguments: TileArguments
    mixers: Sequence[Mixer]
    "Mixer of each layer."

    def __init__(self, request: StepRequest, tile: int, device: torch.device, seed: int) -> None:
        self._token_ids = _ready_to_copy(request.token_ids, device)
        self._labels = _ready_to_copy(request.labels, device)
        found = labelled_positions(request.labels)
        self._labelled = None if found is None else found.cpu()
        given = request.coefficients
        self._coefficients = None if given is None else _ready_to_copy(given, device)
        self.document_starts, self.boundary = request.document_starts, request.boundary
        self.context, self._tile, self._device = request.context, tile, device
        self.tiles = -(-self.context // tile)
        self.seed = seed
        self.resumed = request.resumed
        self.balanced = request.context if request.balanced is None else request.balanced
        "Number of leading tokens that the auxiliary loss of routers counts."
        self.balance: BalanceSums | None = None
        "Sums of that loss; None for a model without it."
        self.balance_factor = [0.0]
        "Factor of that loss in what is minimised, once it is known."
        self.drew = self.resumed is not None and self.resumed.drawn_tile is not None
        "Whether the forward pass drew a random number; recorded only if `watches`."
        self.watches = False
        self.keeps: range = range(0)
        "Layers that keep their graph between the passes."
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}
        "Input and output, (1, context, hidden), of each layer in `keeps` that has been computed."
        is_predicted = request.labels != IGNORED
        self.predicted = int(is_predicted.sum())
        "Number of predicted tokens."
        self.divisor = float(self.predicted)
        "Sum of their coefficients."
        if given is not None:
            self.divisor = float(given.to(is_predicted.device)[is_predicted].double().sum())
        self.loss_sum: float | Tensor = 0.0
        self.token_losses: list[Tensor] = []
        "Losses of each tile's tokens, (tile,); only for a step without gradients."
        self.guesses, self.likeliest = request.guesses, list[Tensor]()
        "The likeliest tokens in their places, (tile,); only for one that is asked for them."
        self.generator = torch.empty(0, dtype=torch.uint8)
        "State of torch's CPU generator after the seed was drawn."
        self.stage, self._total, self._done = "preparation", 0, 0
        self._progress, self._cancelled = request.progress, request.cancelled
        self._pace = LaunchThrottle(device)

    def span(self, tile: int) -> slice:
        """Returns the positions of a tile."""
        return slice(tile * self._tile, min((tile + 1) * self._tile, self.context))

    def token_ids(self, tile: int) -> Tensor:
        """Returns the token ids of a tile, (tile,), on the compute device."""
        return self._token_ids[self.span(tile)].to(self._device, non_blocking=True)

    def labels(self, tile: int) -> Tensor:
        """Returns the labels of a tile, (tile,), on the compute device."""
        return self._labels[self.span(tile)].to(self._device, non_blocking=True)

    def labelled(self, tile: int) -> Tensor | None:
        """Returns the positions within a tile that the head is applied to, (positions,) int64; None for all."""
        if self._labelled is None:
            return None
        span = self.span(tile)
        first, last = torch.searchsorted(self._labelled, torch.tensor([span.start, span.stop])).tolist()
        # One position at least, as of a whole sequence (engine.streaming.loss.labelled_positions).
        places = self._labelled[first:last] - span.start if last > first else torch.zeros(1, dtype=torch.int64)
        return _ready_to_copy(places, self._device).to(self._device, non_blocking=True)

    def coefficients(self, tile: int) -> Tensor | None:
        """Returns the factors of a tile's losses, (tile,), on the compute device; None where all are 1."""
        if self._coefficients is None:
            return None
        return self._coefficients[self.span(tile)].to(self._device, non_blocking=True)

    @property
    def spans(self) -> list[slice]:
        """Positions of every tile."""
        return [self.span(tile) for tile in range(self.tiles)]

    def enter(self, stage: str, total: int) -> None:
        """Begins a stage of `total` tiles."""
        self.stage, self._total, self._done = stage, total, 0

    def advance(self, layer: int, tile: int) -> None:
        """Records that a tile was enqueued, and reports the progress.

        Raises:
            StepCancelled: `cancelled` returned True.
        """
        self._done += 1
        self._pace.tick()
        if self._progress is not None:
            self._progress(
                TileProgress(
                    stage=self.stage, layer=layer, tile=tile, done=min(self._done, self._total), total=self._total
                )
            )
        if self._cancelled is not None and self._cancelled():
            raise StepCancelled


def _ready_to_copy(values: Tensor, device: torch.device) -> Tensor:
    """Pins host values for a CUDA device, so that copying a slice of them does not block the CPU."""
    return values.pin_memory() if device.type == "cuda" and values.device.type == "cpu" else values


def next_token_labels(token_ids: Tensor, document_starts: Sequence[int] = (0,)) -> Tensor:
    """Labels each position with the next token of its document, IGNORED at a document's last token.

    Args:
        token_ids: (context,).
        document_starts: First positions of the documents, ascending from 0.

    Returns:
        (context,), int64.
    """
    labels = token_ids.roll(-1).to(torch.long)
    ends = torch.tensor([start - 1 for start in document_starts[1:]] + [token_ids.shape[0] - 1], dtype=torch.long)
    labels[ends.to(labels.device)] = IGNORED
    return labels
