"""Stores the hidden states between the layers, and their gradient during the backward pass."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.plan.stream_plan import StreamPlan
from engine.streaming.quantization import Plain, Quantizer, quantizer_for
from engine.streaming.tile_factory import TileFactory
from engine.streaming.tiles import TileArray, TileReader


class _StoredStates:
    """One array of hidden states, as the components of its quantizer."""

    def __init__(self, components: list[TileArray]) -> None:
        self.components = components


class HiddenStates:
    """Stores the layers' inputs, of which every k-th is kept (`checkpoint_every`), and the gradient stream G.

    Layer l's input is kept in an array of its own if l is a multiple of k. The k - 1 inputs after a kept one share
    scratch arrays. After the forward pass these hold the last segment; each earlier segment is recomputed from its
    kept input (Griewank & Walther 2000; Chen et al., arXiv 1604.06174). The last layer's output is needed only until
    the loss has read it, tile by tile, so G overwrites it, in a home of its own. In all there are
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
        gradient_factory: TileFactory | None = None,
    ) -> None:
        self._layers, self._every = layers, plan.checkpoint_every
        tile = min(plan.tile, context)
        self._codec: Quantizer = quantizer_for(plan.activation_bits, width, dtype)

        def stored() -> _StoredStates:
            return _StoredStates([factory.array(context, w, d, plan.tile) for w, d in self._codec.components])

        self._kept = [stored() for _ in range(0, layers, self._every)]
        self._scratch = [stored() for _ in range(min(self._every, layers) - 1)]
        # G keeps full precision, because an error in it would reach every layer below.
        self._top = (gradient_factory or factory).array(context, width, dtype, plan.tile)
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
        """Bytes of the stored layer inputs, without the gradient stream."""
        arrays = [array for states in (*self._kept, *self._scratch) for array in states.components]
        return sum(array.capacity * array.width * array.dtype.itemsize for array in arrays)

    def begin(self, context: int) -> None:
        """Prepares for a sequence of `context` tokens."""
        for array in self._all_arrays():
            array.rows = context
        for reader in (*self._readers, self._top_reader):
            reader.reset()
        self._segment = (self._layers - 1) // self._every
        # A single tile is read as soon as it is written, so it skips the copy to its home and back.
        self._one_tile = context <= self._top.tile and isinstance(self._codec, Plain)
        self._newest = self._newest_gradient = None

    def _of(self, layer: int) -> _StoredStates:
        kept, offset = divmod(layer, self._every)
        return self._scratch[offset - 1] if offset else self._kept[kept]

    def write(self, layer: int, tile: int, value: Tensor) -> None:
        """Stores a tile of a layer's input, (tile, hidden); layer = number of layers stores the last layer's output."""
        if self._one_tile:
            self._newest = layer, value
            if layer == self._layers:
                return  # only the loss reads it, right after this call
        if layer == self._layers:
            self._top.write(tile, value)
            return
        parts = self._codec.encode(value)
        for array, part in zip(self._of(layer).components, parts, strict=True):
            array.write(tile, part)

    def pass_on(self, layer: int, tile: int, value: Tensor) -> None:
        """Stores a tile, (tile, hidden), that only the next layer reads, and the backward pass does not."""
        if self._one_tile:
            self._newest = layer, value
        else:
            self.write(layer, tile, value)

    def prefetch(self, layer: int, tile: int) -> None:
        """Starts to fetch the tile for `read`."""
        if self._newest is not None and self._newest[0] == layer:
            return
        if layer == self._layers:
            self._top_reader.prefetch(self._top, tile)
            return
        for reader, array in zip(self._readers, self._of(layer).components, strict=True):
            reader.prefetch(array, tile)

    def read(self, layer: int, tile: int) -> Tensor:
        """Returns a tile of a layer's input, (tile, hidden), on the compute device."""
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
        """Starts to fetch the tile for `read_gradient`."""
        if self._newest_gradient is not None:
            return
        self._top_reader.prefetch(self._top, tile)

    def read_gradient(self, tile: int) -> Tensor:
        """Returns a tile of G, (tile, hidden), on the compute device."""
        if self._newest_gradient is not None:
            return self._newest_gradient
        return self._top_reader.read(self._top, tile)

    def holds(self, layer: int) -> bool:
        """Whether the layer's input is stored, either kept or in the present segment."""
        kept, offset = divmod(layer, self._every)
        return not offset or kept == self._segment

    def kept_below(self, layer: int) -> int:
        """Finds the nearest layer not above `layer` whose input is kept."""
        return layer - layer % self._every

    def hold_segment(self, layer: int) -> None:
        """Records that the scratch arrays hold the segment of this layer."""
        self._segment = layer // self._every

    def close(self) -> None:
        """Releases the arrays."""
        self._newest = self._newest_gradient = None
        for array in self._all_arrays():
            array.close()
