"""Hidden states between the layers, and the gradient that travels down through them."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.plan.stream_plan import StreamPlan
from engine.streaming.quantization import Plain, Quantizer, quantizer_for
from engine.streaming.tile_factory import TileFactory
from engine.streaming.tiles import TileArray, TileReader


class _StoredStates:
    """One array of hidden states, as its codec's components."""

    def __init__(self, components: list[TileArray]) -> None:
        self.components = components


class HiddenStates:
    """Inputs of the layers, of which every k-th is kept (`checkpoint_every`), and the gradient stream G.

    Layer l's input is kept in an array of its own if l is a multiple of k. The k - 1 inputs after a kept one share
    scratch arrays: after the forward pass they hold the last segment, and each earlier segment is computed once
    more from its kept input (Griewank & Walther 2000; Chen et al., arXiv 1604.06174). The last layer's output is
    needed only until the loss has read it, tile by tile, so G takes its place. In all
    ceil(L / k) + k - 1 + 1 arrays of context × hidden.
    """

    def __init__(
        self,
        *,
        layers: int,
        context: int,
        width: int,
        dtype: torch.dtype,
        plan: StreamPlan,
        factory: TileFactory,
    ) -> None:
        self._layers, self._every = layers, plan.checkpoint_every
        tile = min(plan.tile, context)
        self._codec: Quantizer = quantizer_for(plan.activation_bits, width, dtype)

        def stored() -> _StoredStates:
            return _StoredStates([factory.array(context, w, d, plan.tile) for w, d in self._codec.components])

        self._kept = [stored() for _ in range(0, layers, self._every)]
        self._scratch = [stored() for _ in range(min(self._every, layers) - 1)]
        # G keeps full precision: an error in it would reach every layer below.
        self._top = factory.array(context, width, dtype, plan.tile)
        self._readers = [TileReader(w, d, tile, factory.device) for w, d in self._codec.components]
        self._top_reader = TileReader(width, dtype, tile, factory.device)
        self._segment = 0
        self._newest: tuple[int, Tensor] | None = None
        self._newest_gradient: Tensor | None = None
        self._one_tile = False

    def _all_arrays(self) -> list[TileArray]:
        return [a for states in (*self._kept, *self._scratch) for a in states.components] + [self._top]

    @property
    def stored_bytes(self) -> int:
        """What the inputs of the layers take in their home, without the gradient stream."""
        arrays = [array for states in (*self._kept, *self._scratch) for array in states.components]
        return sum(array.capacity * array.width * array.dtype.itemsize for array in arrays)

    def begin(self, context: int) -> None:
        """A sequence of this many tokens begins."""
        for array in self._all_arrays():
            array.rows = context
        for reader in (*self._readers, self._top_reader):
            reader.reset()
        self._segment = (self._layers - 1) // self._every
        # A lone tile is read again as soon as it is written: it need not wait for its way home and back.
        self._one_tile = context <= self._top.tile and isinstance(self._codec, Plain)
        self._newest = self._newest_gradient = None

    def _of(self, layer: int) -> _StoredStates:
        kept, offset = divmod(layer, self._every)
        return self._scratch[offset - 1] if offset else self._kept[kept]

    def write(self, layer: int, tile: int, value: Tensor) -> None:
        """Stores a tile of a layer's input, (tile, hidden); layer = number of layers is the last one's output."""
        if self._one_tile:
            self._newest = layer, value
            if layer == self._layers:
                return  # the loss reads it at once, and nothing else does
        if layer == self._layers:
            self._top.write(tile, value)
            return
        parts = self._codec.encode(value)
        for array, part in zip(self._of(layer).components, parts, strict=True):
            array.write(tile, part)

    def pass_on(self, layer: int, tile: int, value: Tensor) -> None:
        """As `write`, for an input that is read once, by the layer that runs next, and not in the backward pass."""
        if self._one_tile:
            self._newest = layer, value
        else:
            self.write(layer, tile, value)

    def prefetch(self, layer: int, tile: int) -> None:
        """Starts to fetch what `read` will return."""
        if self._newest is not None and self._newest[0] == layer:
            return
        if layer == self._layers:
            self._top_reader.prefetch(self._top, tile)
            return
        for reader, array in zip(self._readers, self._of(layer).components, strict=True):
            reader.prefetch(array, tile)

    def read(self, layer: int, tile: int) -> Tensor:
        """A tile of a layer's input, (tile, hidden), on the compute device."""
        if self._newest is not None and self._newest[0] == layer:
            return self._newest[1]
        if layer == self._layers:
            return self._top_reader.read(self._top, tile)
        arrays = self._of(layer).components
        return self._codec.decode([r.read(a, tile) for r, a in zip(self._readers, arrays, strict=True)])

    def write_gradient(self, tile: int, value: Tensor) -> None:
        """Stores a tile of G, (tile, hidden)."""
        if self._one_tile:
            self._newest, self._newest_gradient = None, value
        else:
            self._top.write(tile, value)

    def prefetch_gradient(self, tile: int) -> None:
        """Starts to fetch what `read_gradient` will return."""
        if self._newest_gradient is not None:
            return
        self._top_reader.prefetch(self._top, tile)

    def read_gradient(self, tile: int) -> Tensor:
        """A tile of G."""
        if self._newest_gradient is not None:
            return self._newest_gradient
        return self._top_reader.read(self._top, tile)

    def holds(self, layer: int) -> bool:
        """Whether the layer's input is there: kept, or in the present segment."""
        kept, offset = divmod(layer, self._every)
        return not offset or kept == self._segment

    def kept_below(self, layer: int) -> int:
        """The nearest layer not above `layer` whose input is kept."""
        return layer - layer % self._every

    def hold_segment(self, layer: int) -> None:
        """The scratch arrays now hold the inputs up to this layer's."""
        self._segment = layer // self._every

    def close(self) -> None:
        """Releases the arrays."""
        self._newest = self._newest_gradient = None
        for array in self._all_arrays():
            array.close()
