"""Recurrent layers (Gated DeltaNet, Mamba2, short convolutions) tile by tile.

A recurrent layer couples a tile to earlier ones only through the states S at its start:

    forward   tile t: S[t] in, S[t+1] out; S[t] goes to its home
    backward  tile t, from the last: the layer again with S[t] as leaves; backward of (y, S[t+1]) with (G[t], dS[t+1]);
              the leaves' gradients are dS[t]

A state begins at zero where a document begins, and its gradient ends there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from engine.models.recurrent_mixers import Call, RecurrentMixer, routed
from engine.streaming.document_pieces import borders_within, mix_documents
from engine.streaming.mixer import Mixer, Pass
from engine.streaming.mixer_cache import States
from engine.streaming.recurrent_states import BorderStates
from engine.streaming.tile_attention import AttentionMixer


class RecurrentMixing(Mixer):
    """The mixer state of one layer with recurrent mixers, which may attend as well.

    Args:
        mixers: The layer's recurrent mixers.
        states: Stores the states at the tiles' borders.
        attention: The attention of the layer, if it attends.
        document_starts: First positions of the documents, ascending from 0.
        spans: Positions of the tiles.
    """

    def __init__(
        self,
        mixers: Sequence[RecurrentMixer],
        states: BorderStates,
        attention: AttentionMixer,
        document_starts: Sequence[int],
        spans: Sequence[slice],
    ) -> None:
        self._mixers, self._states, self._attention = mixers, states, attention
        self._starts, self._spans = document_starts, spans
        self._begins = frozenset(document_starts)
        self._purpose, self._tile, self._span = Pass.FORWARD, 0, slice(0, 0)
        self._called: set[tuple[int, int]] = set()
        self._carried: dict[tuple[int, int], States] = {}
        "States after the tile that the present forward pass has computed, by mixer."
        self._leaves: dict[tuple[int, int], States] = {}
        "States at the start of the tile whose graph is being built."
        self._ends: dict[tuple[int, int], States] = {}
        "States at its end, with their graph."
        self._gradients: dict[tuple[int, int], States] = {}
        "Gradients of the states at its end, from the tile after it."

    @contextlib.contextmanager
    def running(self, purpose: Pass, tile: int, span: slice) -> Iterator[Mapping[str, Any]]:
        """See Mixer.

        Raises:
            RuntimeError: the layer does not call each of its recurrent mixers once.
        """
        self._purpose, self._tile, self._span = purpose, tile, span
        self._called.clear()
        with routed(self._mixers, self), self._attention.running(purpose, tile, span) as arguments:
            yield arguments
        if len(self._called) != len(self._mixers):
            raise RuntimeError(f"layer {self._attention.layer} leaves out one of its recurrent mixers")

    def mix(self, mixer: RecurrentMixer, call: Call, x: Tensor) -> Tensor:
        """See MixerRunner.

        Raises:
            RuntimeError: the layer calls the mixer again.
        """
        if mixer.key in self._called:
            raise RuntimeError(f"layer {mixer.layer} calls a recurrent mixer more than once")
        self._called.add(mixer.key)
        start, stop = self._span.start, self._span.stop
        before = {} if start in self._begins else self._before(mixer)
        continues = self._tile + 1 < len(self._spans) and stop not in self._begins
        borders = borders_within(start, stop, self._starts)
        y, after = mix_documents(call, x, borders, before, continues=continues)
        if self._purpose in (Pass.GRADIENT, Pass.KEEP):
            self._leaves[mixer.key], self._ends[mixer.key] = before, after
        elif self._purpose is not Pass.COLLECT:
            self._carried[mixer.key] = {name: state.detach().contiguous() for name, state in after.items()}
        return y

    def _before(self, mixer: RecurrentMixer) -> States:
        """Returns the states at the present tile's start: stored ones, or those of the tile before."""
        if self._purpose in (Pass.GRADIENT, Pass.COLLECT):
            states = self._states.read(mixer.key, self._tile)
            if self._purpose is Pass.COLLECT:
                return states
            return {name: state.detach().requires_grad_() for name, state in states.items()}
        states = self._carried[mixer.key]
        if self._purpose is Pass.FORWARD:
            self._states.write(mixer.key, self._tile, states)
        return states

    def prefetch(self, purpose: Pass, tile: int) -> None:
        """See Mixer."""
        self._attention.prefetch(purpose, tile)
        if purpose is Pass.GRADIENT and self._spans[tile].start not in self._begins:
            for mixer in self._mixers:
                self._states.prefetch(mixer.key, tile)

    # --- the backward pass -------------------------------------------------------------------------------------

    def restore(self, spans: Sequence[slice]) -> bool:
        """See Mixer. The states at the tiles' borders are all kept."""
        return not self._attention.attends or self._attention.restore(spans)

    def begin_backward(self) -> None:
        """See Mixer."""
        self._gradients = {}
        if self._attention.attends:
            self._attention.begin_backward()

    def backward_order(self, tiles: int) -> list[tuple[Pass, int]]:
        """See Mixer."""
        return self._attention.backward_order(tiles)

    def restore_below(self, tile: int, spans: Sequence[slice]) -> None:
        """See Mixer."""
        self._attention.restore_below(tile, spans)

    def backward(self, tile: int, y: Tensor, gradient: Tensor) -> None:  # noqa: ARG002
        """See Mixer. Backpropagates the states at the tile's end as well as y."""
        pairs = [(y, gradient)]
        for key, gradients in self._gradients.items():
            pairs += [(self._ends[key][name], found) for name, found in gradients.items()]
        pairs = [(end, found.to(end.dtype)) for end, found in pairs if end.requires_grad]
        if pairs:
            torch.autograd.backward([end for end, _ in pairs], [found for _, found in pairs])
        self._gradients = {
            key: {name: state.grad for name, state in leaves.items() if state.grad is not None}
            for key, leaves in self._leaves.items()
        }
        self._leaves, self._ends = {}, {}
