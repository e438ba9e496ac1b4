"""The passes of a streamed step over layers and tiles: forward, loss, backward.

Layer-major order. A decoder is a grid of layers and tiles of tokens, and only attention couples the tiles:

    forward   for each layer, for each tile in order: y = layer(x), attending to the keys of earlier tiles
    loss      for each tile: the loss, and G = dL/dy
    backward  for each layer from the last, for each tile from the last: recompute the layer with a graph,
              G = dL/dx; attention adds to the gradients of earlier tiles' keys and values, and reads its own

Only one layer's keys, values and their gradients exist at a time. The hidden states of every layer's input are
offloaded to their home (StreamPlan). Related work: OOMB (arXiv 2602.02108), StreamBP (arXiv 2506.03077).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import StreamPlanError
from engine.models.wide_gradients import WideGradients
from engine.plan.stream_plan import StreamPlan
from engine.randomness import KeyedGenerators
from engine.streaming import attention as streamed_attention
from engine.streaming import copies
from engine.streaming.attention import KvCollected, Pass
from engine.streaming.boundary import BackwardPoint, retile
from engine.streaming.decoder import Decoder, does_not_attend_once
from engine.streaming.linears import ExpandedWeights, FrozenLinears
from engine.streaming.loss import loss_and_gradient, token_losses
from engine.streaming.sequence_run import SequenceRun
from engine.streaming.weights import LayerWeights, ResidentWeights, StreamedWeights, travels
from engine.streaming.workspace import Workspace


class LayerPasses:
    """Runs a model's layers over the tiles of a SequenceRun, within a step that owns the model (StreamedStep).

    Arguments and errors are those of StreamedStep.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: StreamPlan,
        *,
        device: torch.device,
        spill_directory: Path | None = None,
        label_smoothing: float = 0.0,
        wide_gradients: WideGradients | None = None,
    ) -> None:
        self.plan, self.device, self.model = plan, device, model
        self._label_smoothing = label_smoothing
        self.decoder = Decoder(model)
        self._streams = copies.copy_streams(device)
        layers = self.decoder.layers
        self._trainable = [any(p.requires_grad for p in layer.parameters()) for layer in layers]
        self._trains_embedding = self.decoder.trains_embedding
        self._generators = KeyedGenerators(device)
        self._linears = FrozenLinears(layers, self.decoder.config.model_type)
        self._weights = self._make_weights(layers)
        self._owns_gradients = wide_gradients is None
        self.wide_gradients = wide_gradients or WideGradients(model.parameters(), home=torch.device("cpu"))
        self._workspace = Workspace(self.decoder, plan, device, self._streams, spill_directory)
        streamed_attention.register()

    @property
    def _lowest(self) -> int:
        """Number of the lowest layer that the backward pass reaches."""
        if self._trains_embedding:
            return 0
        return next((i for i, trains in enumerate(self._trainable) if trains), len(self._trainable))

    def _make_weights(self, layers: Sequence[nn.Module]) -> LayerWeights:
        if self._linears.quantised != (self.plan.weights == "nf4"):
            self._linears.close()
            stored = "in 4 bits" if self._linears.quantised else "unquantised"
            raise StreamPlanError(f"the plan says weights={self.plan.weights}, but the model's are stored {stored}")
        if self.plan.weights == "nf4":
            return ExpandedWeights(self._linears)
        if self.plan.weights == "resident":
            return ResidentWeights()
        weights = StreamedWeights(layers, self.device, self._streams)
        waiting = {id(p) for layer in layers for p in layer.parameters() if travels(p)}
        for parameter in self.model.parameters():
            if id(parameter) not in waiting:
                parameter.data = parameter.data.to(self.device)
        for module in self.model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(self.device))
        return weights

    def _forward(self, run: SequenceRun, purpose: Pass) -> None:
        top = len(self.decoder.layers) if run.resumed is None else run.resumed.layer
        run.enter("forward", top * run.tiles)
        hidden = self._workspace.hidden
        with torch.no_grad():
            for tile in range(run.tiles):
                hidden.write(0, tile, self._embed(run, tile)[0])
            for layer in range(top):
                if layer in run.keeps and purpose is Pass.FORWARD:
                    self._keep_layer(run, layer)
                else:
                    self._run_layer(run, layer, purpose)

    def _run_layer(self, run: SequenceRun, layer: int, purpose: Pass) -> None:
        """Runs a layer over all tiles without a graph, from its input's array into its output's."""
        hidden = self._workspace.hidden
        self._enter(layer)
        self._weights.prefetch(layer - 1 if purpose is Pass.COLLECT else layer + 1)
        for tile in range(run.tiles):
            self._prefetch(layer, tile, purpose)  # does nothing for a tile that is already being fetched
            x = hidden.read(layer, tile)
            if tile + 1 < run.tiles:
                self._prefetch(layer, tile + 1, purpose)
            elif tile and purpose in (Pass.FORWARD, Pass.EVALUATE):
                self._prefetch(layer + 1, 0, purpose)  # written long ago, so that the next layer begins without a wait
            try:
                y = self._call_layer(run, layer, tile, x.unsqueeze(0), purpose)
            except KvCollected:
                pass
            else:
                hidden.write(layer + 1, tile, y[0])
            run.advance(layer, tile)

    def _keep_layer(self, run: SequenceRun, layer: int) -> None:
        """Runs a layer over the only tile, and keeps its graph for the backward pass."""
        self._enter(layer)
        x = self._workspace.hidden.read(layer, 0).unsqueeze(0).detach()
        with torch.enable_grad():
            x.requires_grad_()
            y = self._call_layer(run, layer, 0, x, Pass.KEEP)
        run.kept[layer] = x, y
        hidden = self._workspace.hidden
        (hidden.pass_on if layer + 1 in run.keeps else hidden.write)(layer + 1, 0, y[0].detach())
        run.advance(layer, 0)

    def _enter(self, layer: int) -> None:
        """Makes a layer's weights resident, once for all tiles of a pass."""
        self._linears.enter(layer)
        self._weights.enter(layer)

    def _prefetch(self, layer: int, tile: int, purpose: Pass) -> None:
        self._workspace.hidden.prefetch(layer, tile)
        stash = self._workspace.attention.stash
        if stash is not None and purpose in (Pass.REPEAT, Pass.GRADIENT):
            stash.prefetch(layer, tile)

    def _call_layer(self, run: SequenceRun, layer: int, tile: int, x: Tensor, purpose: Pass) -> Tensor:
        """Computes the layer's output for a tile x, both (1, tile, hidden)."""
        arguments = run.arguments.of(tile, x)[layer]
        self._workspace.attention.begin(purpose, layer, tile, run.span(tile).start)
        drawing = self._numbers(run, "layer", layer, tile, first=purpose in (Pass.FORWARD, Pass.KEEP))
        with drawing, streamed_attention.counted_calls() as calls:
            output: Any = self.decoder.layers[layer](x, **arguments)
        if calls[0] != 1:
            raise does_not_attend_once(self.decoder.config, layer, calls[0])
        y: Tensor = output[0] if isinstance(output, tuple) else output
        return y

    def _embed(self, run: SequenceRun, tile: int) -> Tensor:
        """Computes the first layer's input for a tile, (1, tile, hidden)."""
        with self._numbers(run, "embedding", 0, tile, first=True):
            ids = run.token_ids(tile)
            return self.decoder.embed(ids.unsqueeze(0), run.arguments.positions(tile, len(ids)))

    @contextlib.contextmanager
    def _numbers(self, run: SequenceRun, purpose: str, layer: int, tile: int, *, first: bool) -> Iterator[None]:
        """Seeds the generators from the key, so that every pass over a tile draws the same random numbers.

        `first` marks the forward pass, which records whether any random number is drawn.
        """
        watches = first and run.watches and not run.drew
        self._generators.seed(run.seed, purpose, layer, tile, watch=watches)
        yield
        if watches:
            run.drew = self._generators.drew()

    def _loss(self, run: SequenceRun, scale: float | None) -> float:
        """Computes the summed loss, and stores scale × its gradient w.r.t. the last layer's output as G.

        With `scale` None it stores no gradient but the loss of every token.
        """
        if run.resumed is not None:
            rows = [span.stop - span.start for span in run.spans]
            for tile, gradient in enumerate(retile(run.resumed.gradient(), rows)):
                self._workspace.hidden.write_gradient(tile, gradient.to(self.device))
            return run.resumed.loss_sum
        run.enter("loss", run.tiles)
        hidden, top = self._workspace.hidden, len(self.decoder.layers)
        trains_norm = any(p.requires_grad for p in self.decoder.final_norm_parameters)
        total = torch.zeros((), dtype=torch.float64)
        sums = []
        for tile in range(run.tiles):
            x = hidden.read(top, tile).unsqueeze(0).detach().requires_grad_()
            if tile + 1 < run.tiles:
                hidden.prefetch(top, tile + 1)
            labels = run.labels(tile)
            if scale is None:
                with torch.no_grad():
                    normed = self.decoder.final_norm(x)
                    of_tokens = token_losses(normed[0], labels, self.decoder.head, piece=self.plan.loss_piece)
                loss = of_tokens.sum()
                run.token_losses.append(of_tokens)
            else:
                normed = self.decoder.final_norm(x)
                loss, gradient = loss_and_gradient(
                    normed[0].detach(),
                    labels,
                    self.decoder.head,
                    piece=self.plan.loss_piece,
                    scale=scale,
                    label_smoothing=self._label_smoothing,
                )
                inputs = None if trains_norm else [x]
                torch.autograd.backward(normed, gradient.unsqueeze(0), inputs=inputs)
                assert x.grad is not None
                hidden.write_gradient(tile, x.grad[0])
            sums.append(loss)
            run.advance(top, tile)
        self.wide_gradients.flush()
        for loss in sums:
            total += loss.to(torch.float64).cpu()
        return float(total)

    def _backward(self, run: SequenceRun, boundary: Callable[[BackwardPoint], None] | None) -> None:
        lowest = self._lowest
        top = len(self.decoder.layers) if run.resumed is None else run.resumed.layer
        run.enter("backward", (top - lowest) * run.tiles)
        hidden, keys_of = self._workspace.hidden, top - 1
        hidden.hold_segment(top - 1)
        for layer in range(top - 1, lowest - 1, -1):
            if boundary is not None and (layer < top - 1 or run.resumed is None):
                boundary(self._point(run, layer + 1))
            if layer in run.kept:
                self._kept_backward(run, layer)
                continue
            if not hidden.holds(layer):
                run.stage = "recompute"
                with torch.no_grad():
                    for below in range(hidden.kept_below(layer), layer):
                        self._run_layer(run, below, Pass.REPEAT)
                        keys_of = below if self._workspace.attention.stash is None else keys_of
                hidden.hold_segment(layer)
                run.stage = "backward"
            attention = self._workspace.attention
            # A single tile needs only its own keys and values; those in a window are restored tile by tile.
            if run.tiles > 1 and keys_of != layer and attention.reach(layer) is None:
                if not attention.restore_kv(layer, run.spans):
                    with torch.no_grad():
                        self._run_layer(run, layer, Pass.COLLECT)
                keys_of = layer
            self._layer_backward(run, layer, needs_input=layer > lowest or self._trains_embedding)
        if self._trains_embedding:
            self._embedding_backward(run)

    def _layer_backward(self, run: SequenceRun, layer: int, *, needs_input: bool) -> None:
        hidden = self._workspace.hidden
        self._enter(layer)
        self._weights.prefetch(layer - 1)
        self._linears.want_output(wanted=False)
        self._workspace.attention.zero_gradients(layer)
        order = self._backward_order(run, layer)
        for (purpose, tile), following in zip_longest(order, order[1:]):
            self._prefetch(layer, tile, purpose)
            x = hidden.read(layer, tile).unsqueeze(0)
            if following is not None:
                self._prefetch(layer, following[1], following[0])
            elif needs_input and layer and hidden.holds(layer - 1):
                first, of_tile = self._backward_order(run, layer - 1)[0]
                self._prefetch(layer - 1, of_tile, first)
            if purpose is Pass.COLLECT:
                with torch.no_grad(), contextlib.suppress(KvCollected):
                    self._call_layer(run, layer, tile, x, purpose)
            else:
                self._tile_backward(run, layer, tile, x, needs_input=needs_input)
            run.advance(layer, tile)
        self.wide_gradients.flush()

    def _backward_order(self, run: SequenceRun, layer: int) -> list[tuple[Pass, int]]:
        """Lists the tiles of a layer's backward pass from the last, each after the tiles to collect for it."""
        attention, order = self._workspace.attention, []
        for tile in reversed(range(run.tiles)):
            if attention.collects(layer):
                order += [(Pass.COLLECT, below) for below in attention.below(layer, tile, run.tiles)]
            order.append((Pass.GRADIENT, tile))
        return order

    def _tile_backward(self, run: SequenceRun, layer: int, tile: int, x: Tensor, *, needs_input: bool) -> None:
        """Runs the backward pass of one tile of a layer from its input x, (1, tile, hidden)."""
        hidden, attention = self._workspace.hidden, self._workspace.attention
        if attention.reach(layer) is not None and not attention.collects(layer):
            attention.restore_below(layer, tile, run.spans)
        x = x.detach().requires_grad_(needs_input)
        gradient = hidden.read_gradient(tile).unsqueeze(0)
        if run.tiles > 1 and (tile or (needs_input and layer and hidden.holds(layer - 1))):
            hidden.prefetch_gradient((tile - 1) % run.tiles)  # after tile 0 comes the last tile of the layer below
        y = self._call_layer(run, layer, tile, x, Pass.GRADIENT)
        if y.requires_grad:
            torch.autograd.backward(y, gradient)
        if needs_input:
            assert x.grad is not None
            hidden.write_gradient(tile, x.grad[0])

    def _kept_backward(self, run: SequenceRun, layer: int) -> None:
        hidden = self._workspace.hidden
        self._enter(layer)
        self._workspace.attention.zero_gradients(layer)
        x, y = run.kept.pop(layer)
        torch.autograd.backward(y, hidden.read_gradient(0).unsqueeze(0))
        assert x.grad is not None
        hidden.write_gradient(0, x.grad[0])
        run.advance(layer, 0)
        self.wide_gradients.flush()

    def _point(self, run: SequenceRun, layer: int) -> BackwardPoint:
        def gradient() -> Iterator[Tensor]:
            for tile in range(run.tiles):
                yield self._workspace.hidden.read_gradient(tile).cpu()

        return BackwardPoint(
            layer=layer,
            loss_sum=run.loss_sum,
            seed=run.seed,
            drawn_tile=run.span(0).stop if run.drew else None,
            generator=run.generator,
            gradient=gradient,
        )

    def _embedding_backward(self, run: SequenceRun) -> None:
        for tile in range(run.tiles):
            gradient = self._workspace.hidden.read_gradient(tile).unsqueeze(0)
            torch.autograd.backward(self._embed(run, tile), gradient)
        self.wide_gradients.flush()

    def _draws_random_numbers(self) -> bool:
        """Whether random numbers may be drawn; in training mode any module may draw some."""
        return self.model.training
