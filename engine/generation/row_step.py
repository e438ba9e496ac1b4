"""One decoding step of several sequences, replayed as a CUDA graph after the first step of its shape.

A step of a small model is a thousand kernels of a few microseconds, which Python cannot launch as fast as a GPU
computes them. A graph launches them at once. It is used after it has given the logits of the same step without it.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from engine.generation.row_attention import RowAttention, attending_rows, flash_is_right
from engine.generation.slot_cache import SlotCache
from engine.streaming.decoder import Decoder

_FEWEST_KEYS = 256
_TOLERANCE = 2e-2  # relative difference of the logits that 16-bit arithmetic explains


class RowStep:
    """Computes the logits after the next token of the first rows.

    Attributes:
        ids, positions: Next token of each row and its position, (rows,) int64 on the device.
        graphs: Whether steps are captured.

    Args:
        decoder: The model's decoder.
        cache: Caches of all rows.
        graphs: Whether steps may be captured; only a GPU can.
    """

    def __init__(self, decoder: Decoder, cache: SlotCache, *, graphs: bool = True) -> None:
        self._decoder, self._cache = decoder, cache
        self._device = decoder.embedding.weight.device
        self.ids = torch.zeros(cache.rows, dtype=torch.long, device=self._device)
        self.positions = torch.zeros_like(self.ids)
        self.graphs = graphs and self._device.type == "cuda"
        shape = decoder.attention_shape
        self._flash = flash_is_right(
            self._device, decoder.embedding.weight.dtype, shape.heads, shape.kv_heads, shape.head_dim
        )
        self._layers = {id(module): number for number, layer in enumerate(decoder.layers) for module in layer.modules()}
        self._logits: Tensor | None = None
        self._captured: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}

    @torch.no_grad()
    def run(self, count: int, longest: int) -> Tensor:
        """Appends `ids` to the first `count` rows, and moves their positions on.

        Args:
            count: Rows, at least one.
            longest: Tokens of the longest of them, the new one included.

        Returns:
            Logits, (count, vocabulary) fp32; valid until the next step.
        """
        rows, keys = self._shape(count, longest)
        if (graph := self._captured.get((rows, keys))) is not None:
            graph.replay()
        else:
            states = self._cache.snapshot() if self.graphs else []
            self._compute(rows, keys)
            if self.graphs:
                self._capture(rows, keys, states)
        self.positions[:count] += 1
        assert self._logits is not None
        return self._logits[:count]

    def _shape(self, count: int, longest: int) -> tuple[int, int]:
        """Chooses one of few shapes, where steps are captured, of rows and of keys under a mask."""
        if not self.graphs:
            return count, longest
        rows = min(1 << (count - 1).bit_length(), self._cache.rows)
        if self._flash:
            return rows, self._cache.capacity
        return rows, min(max(_FEWEST_KEYS, 1 << (longest - 1).bit_length()), self._cache.capacity)

    def _compute(self, rows: int, keys: int) -> None:
        decoder, positions = self._decoder, self.positions[:rows]
        attention = RowAttention(self._cache, self._layers, decoder.kv_owners, positions, keys, flash=self._flash)
        with attending_rows(decoder, attention):
            hidden = decoder.final_hidden(self.ids[:rows, None], positions[:, None])
        logits = decoder.head(hidden)[:, 0]
        if self._logits is None:
            self._logits = torch.empty((self._cache.rows, logits.shape[-1]), dtype=torch.float32, device=logits.device)
        self._logits[:rows] = logits

    def _capture(self, rows: int, keys: int, states: list[Tensor]) -> None:
        """Captures the step that has just been computed, from the recurrent states before it.

        A graph is used if its replay gives the same logits. Logits and states stay those of the step itself.
        """
        assert self._logits is not None
        wanted, after = self._logits[:rows].clone(), self._cache.snapshot()
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        try:
            # Other threads may use the GPU meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._compute(rows, keys)
            self._cache.restore(states)
            graph.replay()
            if not (self._logits[:rows] - wanted).norm() <= _TOLERANCE * wanted.norm():
                raise RuntimeError("a captured step computes other logits")
        except RuntimeError:  # a layer waits for the GPU, or copies from the host; or no memory is left
            torch.cuda.set_stream(stream)  # a capture that fails leaves its own stream in place
            self._give_up()
        else:
            self._captured[rows, keys] = graph
        self._logits[:rows] = wanted
        self._cache.restore(after)

    def _give_up(self) -> None:
        self.graphs = False
        self._captured.clear()
        with contextlib.suppress(RuntimeError):
            torch.cuda.synchronize(self._device)
