"""Divides the sequences of a streamed step among ranks, which keep their shard's hidden states, keys and values.

It is the same step as on one device (engine/streaming/step.py) but for attention, which all ranks compute together,
layer by layer. Each rank's loss and gradients are those of its own tokens, which attend to the tokens of all ranks.
Their sums over the ranks are those of the whole sequence.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from engine.distributed.ring import RingExchange
from engine.distributed.shards import Order, Segment, rows_of, segments
from engine.distributed.torch_process_group import TorchProcessGroup
from engine.distributed.ulysses import UlyssesExchange
from engine.errors.model import MODEL_FAMILY_UNSUPPORTED
from engine.randomness import derive_seed
from engine.steps.shared_attention import Leg, SharedAttention, SharedMixer
from engine.streaming.decoder import Decoder
from engine.streaming.mixer import KvCollected, Pass
from engine.streaming.passes import Passes
from engine.streaming.sequence_run import SequenceRun, StepCancelled, StepRequest
from engine.streaming.sharding import Shard
from engine.streaming.streamed_model import StreamedModel

_LEAST_TOKENS = 8
"""Least tokens a rank of a sequence that is sharded; every rank computes a shorter one, weighted by 1 / ranks."""


class SequenceSharding:
    """Gives each rank its shard of a sequence; every rank calls the step with the same sequence.

    The step leaves this rank's part of the gradients, whose sum over ranks is the sequence's gradient, and
    `StepOutcome.loss_sum` is that of the whole sequence. Partial checkpoints (`boundary`) are not supported. The plan
    is the same in every rank.

    Args:
        group: The ranks.
        strategy: Ring or Ulysses attention.
        order: Order of the shards in ring attention.
    """

    def __init__(self, group: TorchProcessGroup, strategy: Literal["ring", "ulysses"], order: Order = "zigzag") -> None:
        self._group, self._strategy = group, strategy
        self._order: Order = order if strategy == "ring" else "contiguous"

    def shard(self, request: StepRequest, device: torch.device) -> Shard:
        """See Sharding."""
        if request.context < _LEAST_TOKENS * self._group.size:
            return _Replica(request, self._group)
        kept = segments(request.context, self._group.size, self._order)
        kind: type[RingExchange | UlyssesExchange] = RingExchange if self._strategy == "ring" else UlyssesExchange
        return _RankShard(request, device, self._group, kept, kind)


def refuse_recurrent_layers(decoder: Decoder) -> None:
    """Refuses a model whose recurrent layers would begin every rank's shard with empty states.

    Raises:
        EliteError: MODEL_FAMILY_UNSUPPORTED.
    """
    if any(decoder.mixers):
        raise MODEL_FAMILY_UNSUPPORTED(
            family=decoder.config.model_type,
            feature="sequence parallelism (ring and ulysses)",
            problem="the states of its recurrent layers are not passed from rank to rank",
            supported="distributed.strategy data, zero2 or zero3",
        )


class _Replica(Shard):
    """A sequence that is too short to be sharded. Every rank computes all of it."""

    keeps_graphs = False

    def __init__(self, request: StepRequest, group: TorchProcessGroup) -> None:
        super().__init__(replace(request, cancelled=None))  # the ranks would not stop at the same tile
        self._group = group

    def scale(self, of_sequence: float) -> float:
        return of_sequence / self._group.size


class _RankShard(Shard):
    """This rank's tokens of a sequence.

    Args:
        request: The sequence.
        device: The compute device.
        group: The ranks.
        kept: Segments of every rank.
        exchange: Computes attention over all ranks.
    """

    keeps_graphs = False

    def __init__(
        self,
        request: StepRequest,
        device: torch.device,
        group: TorchProcessGroup,
        kept: list[list[Segment]],
        exchange: type[RingExchange | UlyssesExchange],
    ) -> None:
        own = torch.cat([torch.arange(part.start, part.stop) for part in kept[group.rank]])
        token_ids, labels = request.token_ids.cpu()[own], request.labels.cpu()[own]
        factors = None if request.coefficients is None else request.coefficients.cpu()[own]
        request = replace(request, token_ids=token_ids, labels=labels, coefficients=factors, cancelled=None)
        super().__init__(request)
        starts = torch.tensor(list(request.document_starts))
        self.positions = (own - starts[torch.bucketize(own, starts, right=True) - 1]).to(device)
        self._group, self._kept, self._exchange, self._stops = group, kept, exchange, request.cancelled

    def seed(self, of_sequence: int) -> int:
        return derive_seed(of_sequence, "shard", self._group.rank)  # tile numbers are this rank's own

    def total(self, loss_sum: float | Tensor) -> float:
        return self._group.total([float(loss_sum)])[0]

    def passes(self, model: StreamedModel, run: SequenceRun) -> Passes:
        """See Shard.

        Raises:
            EliteError: MODEL_FAMILY_UNSUPPORTED, for recurrent layers.
        """
        refuse_recurrent_layers(model.decoder)
        exchange = self._exchange(
            self._group,
            self._kept,
            model.workspace.attention.backend,
            tile=model.plan.tile,
            key_block=model.plan.key_block,
            document_starts=run.document_starts,
        )
        shared = SharedAttention(exchange, rows_of(self._kept[self._group.rank]))
        return SharedPasses(model, shared, self._group, self._stops)


class SharedPasses:
    """The Passes of one rank, each layer in two legs with the ranks' exchange between them.

    Args:
        model: Runs one layer on one tile, and has the buffers.
        shared: Computes the attention with the other ranks.
        group: The ranks.
        stops: Whether this rank wants to abandon the step; None never does.
    """

    def __init__(
        self,
        model: StreamedModel,
        shared: SharedAttention,
        group: TorchProcessGroup,
        stops: Callable[[], bool] | None,
    ) -> None:
        self._model, self._shared, self._group, self._stops = model, shared, group, stops
        self._hidden, self._saved = model.workspace.hidden, model.workspace.attention.saved
        self._mixers = [SharedMixer(shared, model.decoder.config, layer) for layer in range(len(model.decoder.layers))]

    def forward(self, run: SequenceRun, layer: int, purpose: Pass) -> None:
        """See Passes."""
        shared, saved = self._shared, self._saved
        self._go_on()
        self._model.enter(layer)
        self._model.weights.prefetch(layer + 1)
        shared.forget()
        with torch.no_grad():
            if purpose is Pass.REPEAT and saved is not None:
                shared.read(saved, layer, run.spans)
            else:
                self._collect(run, layer, following=0)
                if purpose is Pass.FORWARD and saved is not None:
                    shared.write(saved, layer, run.spans)
            for tile in range(run.tiles):
                x = self._read_ahead(layer, tile, tile + 1 if tile + 1 < run.tiles else None)
                self._hidden.write(layer + 1, tile, self._leg(run, layer, tile, x, Leg.OUTPUT)[0])
                run.advance(layer, tile)
        shared.forget()

    def _collect(self, run: SequenceRun, layer: int, following: int) -> None:
        """Computes the attention of all tiles from their inputs, and prefetches tile `following`."""
        with torch.no_grad():
            for tile in range(run.tiles):
                x = self._read_ahead(layer, tile, tile + 1 if tile + 1 < run.tiles else following)
                with contextlib.suppress(KvCollected):
                    self._leg(run, layer, tile, x, Leg.COLLECT)
            self._shared.exchange_forward()  # trained sinks would otherwise give its output a graph

    def backward(self, run: SequenceRun, layer: int, *, needs_input: bool) -> None:
        """See Passes."""
        shared, hidden = self._shared, self._hidden
        self._go_on()
        self._model.enter(layer)
        self._model.weights.prefetch(layer - 1)
        shared.forget()
        if self._saved is not None:
            shared.read(self._saved, layer, run.spans)
        else:
            self._collect(run, layer, following=run.tiles - 1)
        self._model.linears.want_output(wanted=False)
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
        self._model.wide_gradients.flush()

    def _leg(self, run: SequenceRun, layer: int, tile: int, x: Tensor, leg: Leg) -> Tensor:
        self._shared.begin(leg, run.span(tile))
        return self._model.run_layer(run, layer, tile, x, Pass.GRADIENT, self._mixers[layer])

    def _read_ahead(self, layer: int, tile: int, following: int | None) -> Tensor:
        """Reads a tile of the layer's input, (1, tile, hidden), and prefetches the next one."""
        self._hidden.prefetch(layer, tile)
        x = self._hidden.read(layer, tile).unsqueeze(0)
        if following is not None and following != tile:
            self._hidden.prefetch(layer, following)
        return x

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
