"""The streamed step over a sharded sequence, where each rank keeps its shard of hidden states, keys and values.

It is the same step as on one device (engine/streaming/passes.py) but for attention, which all ranks compute together,
layer by layer. Each rank's loss and gradients are those of its own tokens, which attend to the tokens of all ranks.
Their sums over the ranks are those of the whole sequence.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from engine.distributed.ring import RingExchange
from engine.distributed.shards import Order, Segment, rows_of, segments
from engine.distributed.torch_process_group import TorchProcessGroup
from engine.distributed.ulysses import UlyssesExchange
from engine.models.wide_gradients import WideGradients
from engine.plan.stream_plan import StreamPlan
from engine.randomness import derive_seed
from engine.steps.shared_attention import Leg, SharedAttention
from engine.streaming import attention as streamed_attention
from engine.streaming.attention import KvCollected, Pass, Stash
from engine.streaming.boundary import BackwardPoint
from engine.streaming.decoder import refuse_position_dependent_rope
from engine.streaming.positions import TileArguments
from engine.streaming.sequence_run import SequenceRun, StepCancelled, TileProgress, next_token_labels
from engine.streaming.step import StreamedStep

_LEAST_TOKENS = 8
"""Least tokens a rank of a sequence that is sharded; every rank computes a shorter one, weighted by 1 / ranks."""


@dataclass(frozen=True)
class Shard:
    """This rank's shard of the present sequence."""

    kept: list[list[Segment]]
    "Segments of every rank."
    positions: Tensor
    "Positions of this rank's tokens in their documents, (tokens,)."


class _ShardArguments(TileArguments):
    """TileArguments with the shard's positions."""

    shard_positions: Tensor

    def positions(self, tile: int, length: int) -> Tensor:
        """See TileArguments."""
        start = tile * self._tile
        return self.shard_positions[start : start + length].unsqueeze(0)


class SequenceStep(StreamedStep):
    """A StreamedStep by all ranks together; every rank calls it with the same sequence.

    It leaves this rank's part of the gradients, whose sum over ranks is the sequence's gradient. `StepOutcome.loss_sum`
    is already that of the whole sequence. Partial checkpoints (`boundary`) are not supported.

    Args:
        model, plan, device, spill_directory, label_smoothing, wide_gradients: As in StreamedStep; the plan is the
            same in every rank.
        group: The ranks.
        strategy: Ring or Ulysses attention.
        order: Order of the shards in ring attention.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: StreamPlan,
        *,
        device: torch.device,
        group: TorchProcessGroup,
        strategy: Literal["ring", "ulysses"],
        order: Order = "zigzag",
        spill_directory: Path | None = None,
        label_smoothing: float = 0.0,
        wide_gradients: WideGradients | None = None,
    ) -> None:
        super().__init__(
            model,
            plan,
            device=device,
            spill_directory=spill_directory,
            label_smoothing=label_smoothing,
            wide_gradients=wide_gradients,
        )
        self._group, self._strategy = group, strategy
        self._order: Order = order if strategy == "ring" else "contiguous"
        self._shard: Shard | None = None
        self._shared: SharedAttention | None = None
        self._stops: Callable[[], bool] | None = None

    # --- the shard -------------------------------------------------------------------------------------------

    def _sequence(
        self,
        token_ids: Tensor,
        labels: Tensor | None,
        document_starts: Sequence[int],
        progress: Callable[[TileProgress], None] | None,
        cancelled: Callable[[], bool] | None,
        resumed: BackwardPoint | None,
    ) -> SequenceRun:
        context = token_ids.shape[0]
        refuse_position_dependent_rope(self.decoder.config, context)
        labels = next_token_labels(token_ids, document_starts) if labels is None else labels
        self._stops, self._shard = cancelled, None
        if context >= _LEAST_TOKENS * self._group.size:
            kept = segments(context, self._group.size, self._order)
            own = torch.cat([torch.arange(part.start, part.stop) for part in kept[self._group.rank]])
            starts = torch.tensor(list(document_starts))
            in_document = own - starts[torch.bucketize(own, starts, right=True) - 1]
            self._shard = Shard(kept, in_document.to(self.device))
            token_ids, labels = token_ids.cpu()[own], labels.cpu()[own]
        run = super()._sequence(token_ids, labels, document_starts, progress, None, resumed)
        run.keeps = range(0)
        if self._shard is not None:  # tile numbers are this rank's own; without a shard all ranks draw the same
            run.seed = derive_seed(run.seed, "shard", self._group.rank)
        return run

    def _tile_arguments(self, run: SequenceRun) -> TileArguments:
        if self._shard is None:
            return super()._tile_arguments(run)
        arguments = _ShardArguments(self.decoder, run.context, (0,), self.plan.tile, self.device)
        arguments.shard_positions = self._shard.positions
        return arguments

    @contextlib.contextmanager
    def _owning(self, run: SequenceRun) -> Iterator[None]:
        with super()._owning(run):
            if self._shard is not None:
                kind: type[RingExchange | UlyssesExchange] = (
                    RingExchange if self._strategy == "ring" else UlyssesExchange
                )
                exchange = kind(
                    self._group,
                    self._shard.kept,
                    self._workspace.attention.backend,
                    tile=self.plan.tile,
                    key_block=self.plan.key_block,
                    document_starts=run.document_starts,
                )
                self._shared = SharedAttention(exchange, rows_of(self._shard.kept[self._group.rank]))
                streamed_attention.activate(self._shared)
            try:
                yield
            finally:
                self._shared = None

    def _loss(self, run: SequenceRun, scale: float | None) -> float:
        if self._shard is None:  # every rank computes all of it
            return super()._loss(run, None if scale is None else scale / self._group.size)
        return self._group.total([super()._loss(run, scale)])[0]

    # --- one layer -------------------------------------------------------------------------------------------

    def _run_layer(self, run: SequenceRun, layer: int, purpose: Pass) -> None:
        """See LayerPasses. Runs the layer in two legs, with the ranks' exchange between them."""
        shared, stash = self._shared, self._stash
        if shared is None:
            super()._run_layer(run, layer, purpose)
            return
        if purpose is Pass.COLLECT:  # the backward pass collects for itself
            return
        self._go_on()
        self._enter(layer)
        self._weights.prefetch(layer + 1)
        shared.forget()
        if purpose is Pass.REPEAT and stash is not None:
            shared.read(stash, layer, run.spans)
        else:
            self._collect(run, layer, following=0)
            if purpose is Pass.FORWARD and stash is not None:
                shared.write(stash, layer, run.spans)
        for tile in range(run.tiles):
            x = self._read_ahead(layer, tile, tile + 1 if tile + 1 < run.tiles else None)
            self._workspace.hidden.write(layer + 1, tile, self._leg(run, layer, tile, x, Leg.OUTPUT)[0])
            run.advance(layer, tile)
        shared.forget()

    def _collect(self, run: SequenceRun, layer: int, following: int) -> None:
        """Computes the attention of all tiles from their inputs, and prefetches tile `following`."""
        assert self._shared is not None
        with torch.no_grad():
            for tile in range(run.tiles):
                x = self._read_ahead(layer, tile, tile + 1 if tile + 1 < run.tiles else following)
                with contextlib.suppress(KvCollected):
                    self._leg(run, layer, tile, x, Leg.COLLECT)
        self._shared.exchange_forward()

    def _layer_backward(self, run: SequenceRun, layer: int, *, needs_input: bool) -> None:
        shared, stash, hidden = self._shared, self._stash, self._workspace.hidden
        if shared is None:
            super()._layer_backward(run, layer, needs_input=needs_input)
            return
        self._go_on()
        self._enter(layer)
        self._weights.prefetch(layer - 1)
        shared.forget()
        if stash is not None:
            shared.read(stash, layer, run.spans)
        else:
            self._collect(run, layer, following=run.tiles - 1)
        self._linears.want_output(wanted=False)
        for tile in reversed(range(run.tiles)):
            x = self._read_ahead(layer, tile, tile - 1 if tile else run.tiles - 1).detach().requires_grad_(needs_input)
            gradient = hidden.read_gradient(tile).unsqueeze(0)
            torch.autograd.backward(self._leg(run, layer, tile, x, Leg.BELOW), gradient)
            shared.keep_grad_out()
            if needs_input:
                assert x.grad is not None
                hidden.write_gradient(tile, x.grad[0])
        shared.exchange_backward()
        for tile in reversed(range(run.tiles)):
            x = self._read_ahead(layer, tile, tile - 1 if tile else None).detach().requires_grad_(needs_input)
            with contextlib.suppress(KvCollected):
                self._leg(run, layer, tile, x, Leg.ABOVE)
            shared.backward_above()
            if needs_input:
                assert x.grad is not None
                hidden.write_gradient(tile, hidden.read_gradient(tile) + x.grad[0])
            run.advance(layer, tile)
        shared.forget()
        self.wide_gradients.flush()

    def _leg(self, run: SequenceRun, layer: int, tile: int, x: Tensor, leg: Leg) -> Tensor:
        assert self._shared is not None
        self._shared.begin(leg, run.span(tile))
        return self._call_layer(run, layer, tile, x, Pass.GRADIENT)

    def _read_ahead(self, layer: int, tile: int, following: int | None) -> Tensor:
        """Reads a tile of the layer's input, (1, tile, hidden), and prefetches the next one."""
        hidden = self._workspace.hidden
        hidden.prefetch(layer, tile)
        x = hidden.read(layer, tile).unsqueeze(0)
        if following is not None and following != tile:
            hidden.prefetch(layer, following)
        return x

    @property
    def _stash(self) -> Stash | None:
        return self._workspace.attention.stash

    def _go_on(self) -> None:
        """Lets rank 0 decide for all ranks whether the step continues.

        Raises:
            StepCancelled: the step does not continue.
        """
        stops = self._stops
        if stops is None:
            return
        asked = stops()  # called in every rank, because it also monitors the machine
        if self._group.agree(lambda: asked):
            raise StepCancelled
