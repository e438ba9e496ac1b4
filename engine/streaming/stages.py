"""The stages of a streamed step: forward, loss, backward.

Layer-major order. A decoder is a grid of layers and tiles of tokens, and only the layers' mixers couple the tiles:

    forward   for each layer, for each tile in order: y = layer(x), attending to the keys of earlier tiles
    loss      for each tile: the loss, and G = dL/dy
    backward  for each layer from the last, for each tile from the last: recompute the layer with a graph,
              G = dL/dx; attention adds to the gradients of earlier tiles' keys and values, and reads its own

Only one layer's keys, values and their gradients exist at a time. The hidden states of every layer's input are
offloaded to their home (StreamPlan). Related work: OOMB (arXiv 2602.02108), StreamBP (arXiv 2506.03077).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from engine.streaming.boundary import BackwardPoint, retile
from engine.streaming.loss import loss_and_gradient, token_losses
from engine.streaming.mixer import Pass
from engine.streaming.passes import Passes
from engine.streaming.sequence_run import SequenceRun
from engine.streaming.streamed_model import StreamedModel


class Stages(Protocol):
    """What a step computes, in order."""

    def forward(self, run: SequenceRun, purpose: Pass) -> None:
        """Computes the hidden states of every layer, for the purpose FORWARD or EVALUATE."""

    def loss(self, run: SequenceRun, scale: float | None) -> float | Tensor:
        """Computes the summed loss, and stores scale × its gradient w.r.t. the last layer's output as G.

        The sum is a scalar that the device may still be computing. With `scale` None it stores no gradient but the loss
        of every token.
        """

    def backward(self, run: SequenceRun) -> None:
        """Computes the gradients of all trained parameters from G."""


class AllTiles:
    """The Stages of a step over all layers and tiles.

    Args:
        model: Has the embedding, the head and the buffers.
        passes: Runs one layer.
        label_smoothing: Label smoothing of the training loss.
    """

    def __init__(self, model: StreamedModel, passes: Passes, label_smoothing: float = 0.0) -> None:
        self._model, self._passes, self._label_smoothing = model, passes, label_smoothing
        self._hidden, self._decoder = model.workspace.hidden, model.decoder

    def _top(self, run: SequenceRun) -> int:
        """Number of layers that are to be computed: all, or those below the point that the step resumes from."""
        return len(self._decoder.layers) if run.resumed is None else run.resumed.layer

    def forward(self, run: SequenceRun, purpose: Pass) -> None:
        """See Stages."""
        top = self._top(run)
        run.enter("forward", top * run.tiles)
        with torch.no_grad():
            for tile in range(run.tiles):
                self._hidden.write(0, tile, self._model.embed(run, tile)[0])
        for layer in range(top):
            self._passes.forward(run, layer, purpose)

    def loss(self, run: SequenceRun, scale: float | None) -> float | Tensor:
        """See Stages."""
        if run.resumed is not None:
            rows = [span.stop - span.start for span in run.spans]
            for tile, gradient in enumerate(retile(run.resumed.gradient(), rows)):
                self._hidden.write_gradient(tile, gradient.to(self._model.device))
            return run.resumed.loss_sum
        run.enter("loss", run.tiles)
        decoder, hidden, top = self._decoder, self._hidden, len(self._decoder.layers)
        chunk = self._model.plan.loss_piece
        trains_norm = any(p.requires_grad for p in decoder.final_norm_parameters)
        total = torch.zeros((), dtype=torch.float64, device=self._model.device)
        for tile in range(run.tiles):
            x = hidden.read(top, tile).unsqueeze(0).detach().requires_grad_()
            if tile + 1 < run.tiles:
                hidden.prefetch(top, tile + 1)
            labels = run.labels(tile)
            if scale is None:
                if run.guesses:
                    run.likeliest.append(torch.zeros_like(labels))
                with torch.no_grad():
                    of_tokens = token_losses(
                        decoder.final_norm(x)[0],
                        labels,
                        decoder.head,
                        piece=chunk,
                        labelled=run.labelled(tile),
                        likeliest=run.likeliest[-1] if run.guesses else None,
                    )
                factors = run.coefficients(tile)
                loss = (of_tokens if factors is None else of_tokens * factors).sum(dtype=torch.float64)
                run.token_losses.append(of_tokens)
            else:
                normed = decoder.final_norm(x)
                loss, gradient = loss_and_gradient(
                    normed[0].detach(),
                    labels,
                    decoder.head,
                    piece=chunk,
                    scale=scale,
                    label_smoothing=self._label_smoothing,
                    coefficients=run.coefficients(tile),
                    labelled=run.labelled(tile),
                )
                inputs = None if trains_norm else [x]
                torch.autograd.backward(normed, gradient.unsqueeze(0), inputs=inputs)
                assert x.grad is not None
                hidden.write_gradient(tile, x.grad[0])
            total += loss.to(torch.float64)
            run.advance(top, tile)
        self._model.wide_gradients.flush()
        return total

    def backward(self, run: SequenceRun) -> None:
        """See Stages. Calls the run's `boundary` between the layers."""
        model, hidden = self._model, self._hidden
        lowest, top = model.lowest, self._top(run)
        run.enter("backward", (top - lowest) * run.tiles)
        hidden.hold_segment(top - 1)
        for layer in range(top - 1, lowest - 1, -1):
            if run.boundary is not None and (layer < top - 1 or run.resumed is None):
                run.boundary(self._point(run, layer + 1))
            if layer not in run.kept and not hidden.holds(layer):
                self._recompute(run, layer)
            self._passes.backward(run, layer, needs_input=layer > lowest or model.trains_embedding)
        if model.trains_embedding:
            self._embedding_backward(run)

    def _recompute(self, run: SequenceRun, layer: int) -> None:
        """Computes the inputs of a layer's segment again, from the nearest that is kept."""
        run.stage = "recompute"
        for below in range(self._hidden.kept_below(layer), layer):
            self._passes.forward(run, below, Pass.REPEAT)
        self._hidden.hold_segment(layer)
        run.stage = "backward"

    def _point(self, run: SequenceRun, layer: int) -> BackwardPoint:
        def gradient() -> Iterator[torch.Tensor]:
            for tile in range(run.tiles):
                yield self._hidden.read_gradient(tile).cpu()

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
            gradients = [self._hidden.read_gradient(tile).unsqueeze(0)]
            gradients += self._model.workspace.layer_inputs.gradients(tile)
            for rows, x, inputs in self._model.embedded(run, tile):
                pairs = zip((x, *inputs), gradients, strict=True)
                trained = [(end, gradient[:, rows]) for end, gradient in pairs if end.requires_grad]
                torch.autograd.backward([end for end, _ in trained], [gradient for _, gradient in trained])
        self._model.wide_gradients.flush()
