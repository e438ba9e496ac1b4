"""Runs one layer over all tiles of a sequence: forward, again, and backward.

The layer's input and output are arrays of tiles, and so is the gradient stream G, which the backward pass replaces
tile by tile. What couples the tiles is the layer's mixer (engine/streaming/mixer.py).
"""

from __future__ import annotations

import contextlib
from itertools import zip_longest
from typing import Protocol

import torch
from torch import Tensor

from engine.streaming.mixer import KvCollected, Mixer, Pass
from engine.streaming.sequence_run import SequenceRun
from engine.streaming.streamed_model import StreamedModel


class Passes(Protocol):
    """Runs one layer over all tiles."""

    def forward(self, run: SequenceRun, layer: int, purpose: Pass) -> None:
        """Computes the layer's output from its input.

        Args:
            run: The sequence.
            layer: Number of the layer.
            purpose: FORWARD, EVALUATE, or REPEAT for a recompute.
        """

    def backward(self, run: SequenceRun, layer: int, *, needs_input: bool) -> None:
        """Adds to the gradients of the layer's parameters, and replaces G, dL/d(its output), by dL/d(its input).

        Args:
            run: The sequence.
            layer: Number of the layer, whose input is stored.
            needs_input: Whether anything below is trained; without it G is left as it is.
        """


class LayerPasses:
    """The Passes of a model on one device.

    Args:
        model: Runs one layer on one tile, and has the buffers.
    """

    def __init__(self, model: StreamedModel) -> None:
        self._model = model
        self._hidden = model.workspace.hidden

    def forward(self, run: SequenceRun, layer: int, purpose: Pass) -> None:
        """See Passes. Keeps the graph of a layer that the run keeps one of."""
        if layer in run.keeps and purpose is Pass.FORWARD:
            self._keep(run, layer)
        else:
            with torch.no_grad():
                self._over_tiles(run, layer, purpose)

    def _over_tiles(self, run: SequenceRun, layer: int, purpose: Pass) -> None:
        """Runs a layer over all tiles, from its input's array into its output's, or only to collect."""
        hidden, mixer = self._hidden, run.mixers[layer]
        self._model.enter(layer)
        self._model.weights.prefetch(layer - 1 if purpose is Pass.COLLECT else layer + 1)
        for tile in range(run.tiles):
            self._prefetch(mixer, layer, tile, purpose)  # does nothing for a tile that is already being fetched
            x = hidden.read(layer, tile)
            if tile + 1 < run.tiles:
                self._prefetch(mixer, layer, tile + 1, purpose)
            elif tile and purpose in (Pass.FORWARD, Pass.EVALUATE):
                hidden.prefetch(layer + 1, 0)  # written long ago, so that the next layer begins without a wait
            try:
                y = self._model.run_layer(run, layer, tile, x.unsqueeze(0), purpose)
            except KvCollected:
                pass
            else:
                if purpose is not Pass.COLLECT:
                    hidden.write(layer + 1, tile, y[0])
            run.advance(layer, tile)

    def _keep(self, run: SequenceRun, layer: int) -> None:
        """Runs a layer over the only tile, and keeps its graph for the backward pass."""
        hidden = self._hidden
        self._model.enter(layer)
        x = hidden.read(layer, 0).unsqueeze(0).detach()
        with torch.enable_grad():
            x.requires_grad_()
            y = self._model.run_layer(run, layer, 0, x, Pass.KEEP)
        run.kept[layer] = x, y
        (hidden.pass_on if layer + 1 in run.keeps else hidden.write)(layer + 1, 0, y[0].detach())
        run.advance(layer, 0)

    def _prefetch(self, mixer: Mixer, layer: int, tile: int, purpose: Pass) -> None:
        self._hidden.prefetch(layer, tile)
        self._model.workspace.layer_inputs.prefetch(layer, tile)
        mixer.prefetch(purpose, tile)

    def backward(self, run: SequenceRun, layer: int, *, needs_input: bool) -> None:
        """See Passes. Recomputes the layer tile by tile with a graph, unless its graph was kept."""
        if layer in run.kept:
            self._kept_backward(run, layer)
            return
        mixer = run.mixers[layer]
        if not mixer.restore(run.spans):
            with torch.no_grad():
                self._over_tiles(run, layer, Pass.COLLECT)
        self._model.enter(layer)
        self._model.weights.prefetch(layer - 1)
        self._model.linears.want_output(wanted=False)
        mixer.begin_backward()
        order = mixer.backward_order(run.tiles)
        for (purpose, tile), following in zip_longest(order, order[1:]):
            self._prefetch(mixer, layer, tile, purpose)
            x = self._hidden.read(layer, tile).unsqueeze(0)
            if following is not None:
                self._prefetch(mixer, layer, following[1], following[0])
            elif needs_input and layer and self._hidden.holds(layer - 1):
                below = run.mixers[layer - 1]
                first, of_tile = below.backward_order(run.tiles)[0]
                self._prefetch(below, layer - 1, of_tile, first)
            if purpose is Pass.COLLECT:
                with torch.no_grad(), contextlib.suppress(KvCollected):
                    self._model.run_layer(run, layer, tile, x, purpose)
            else:
                self._tile_backward(run, layer, tile, x, needs_input=needs_input)
            run.advance(layer, tile)
        self._model.wide_gradients.flush()

    def _tile_backward(self, run: SequenceRun, layer: int, tile: int, x: Tensor, *, needs_input: bool) -> None:
        """Runs the backward pass of one tile of a layer from its input x, (1, tile, hidden)."""
        hidden, mixer = self._hidden, run.mixers[layer]
        mixer.restore_below(tile, run.spans)
        x = x.detach().requires_grad_(needs_input)
        gradient = hidden.read_gradient(tile).unsqueeze(0)
        if run.tiles > 1 and (tile or (needs_input and layer and hidden.holds(layer - 1))):
            hidden.prefetch_gradient((tile - 1) % run.tiles)  # after tile 0 comes the last tile of the layer below
        y = self._model.run_layer(run, layer, tile, x, Pass.GRADIENT)
        mixer.backward(tile, y, gradient)
        self._model.workspace.layer_inputs.take_gradient(layer, tile)
        if needs_input:
            assert x.grad is not None
            hidden.write_gradient(tile, x.grad[0])

    def _kept_backward(self, run: SequenceRun, layer: int) -> None:
        self._model.enter(layer)
        run.mixers[layer].begin_backward()
        x, y = run.kept.pop(layer)
        run.mixers[layer].backward(0, y, self._hidden.read_gradient(0).unsqueeze(0))
        self._model.workspace.layer_inputs.take_gradient(layer, 0)
        assert x.grad is not None
        self._hidden.write_gradient(0, x.grad[0])
        run.advance(layer, 0)
        self._model.wide_gradients.flush()
