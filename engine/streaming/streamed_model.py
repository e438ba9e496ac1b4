"""A model whose layers run one tile at a time, each pass over a tile with the same weights and random numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors.planning import StreamPlanError
from engine.models.router_balance import RouterBalance, attached, probabilities_of
from engine.models.wide_gradients import WideGradients
from engine.plan.stream_plan import EMBEDDED_AT_ONCE, StreamPlan
from engine.randomness import KeyedGenerators
from engine.streaming import attention as streamed_attention
from engine.streaming import copies
from engine.streaming.decoder import Decoder
from engine.streaming.linears import ExpandedWeights, FrozenLinears
from engine.streaming.mixer import Mixer, Pass
from engine.streaming.sequence_run import SequenceRun
from engine.streaming.weights import LayerWeights, ResidentWeights, StreamedWeights, move_others
from engine.streaming.workspace import Workspace


class StreamedModel:
    """The model of a StreamedStep with its buffers; runs one layer on one tile.

    Arguments and errors are those of StreamedStep.
    """

    def __init__(
        self,
        module: nn.Module,
        plan: StreamPlan,
        *,
        device: torch.device,
        spill_directory: Path | None,
        wide_gradients: WideGradients | None,
    ) -> None:
        self.plan, self.device, self.module = plan, device, module
        self.decoder = Decoder(module)
        if plan.tile == 1 and any(self.decoder.mixers):
            raise StreamPlanError(
                "tile 1 with recurrent layers: their kernels for single tokens have no backward; use 2"
            )
        self._streams = copies.copy_streams(device)
        layers = self.decoder.layers
        self._trainable = [any(p.requires_grad for p in layer.parameters()) for layer in layers]
        self.trains_embedding = self.decoder.trains_embedding
        self._generators = KeyedGenerators(device)
        self.balance = RouterBalance.of(self.decoder.causal)
        self.linears = FrozenLinears(layers, self.decoder.config.model_type)
        self.weights = self._make_weights(layers)
        self._owns_gradients = wide_gradients is None
        self.wide_gradients = wide_gradients or WideGradients(module.parameters(), home=torch.device("cpu"))
        self.workspace = Workspace(self.decoder, plan, device, self._streams, spill_directory)
        streamed_attention.register()

    def _make_weights(self, layers: Sequence[nn.Module]) -> LayerWeights:
        if self.linears.quantised != self.plan.four_bit_weights:
            self.linears.close()
            stored = "in 4 bits" if self.linears.quantised else "unquantised"
            raise StreamPlanError(f"the plan says weights={self.plan.weights}, but the model's are stored {stored}")
        if not self.plan.streams_weights:
            return ExpandedWeights(self.linears) if self.linears.quantised else ResidentWeights()
        mapped = self.plan.weights_home == "disk"
        weights = StreamedWeights(layers, self.device, self._streams, mapped=mapped)
        move_others(self.module, layers, self.device)
        return ExpandedWeights(self.linears, weights) if self.linears.quantised else weights

    @property
    def lowest(self) -> int:
        """Number of the lowest layer that the backward pass reaches."""
        if self.trains_embedding:
            return 0
        return next((i for i, trains in enumerate(self._trainable) if trains), len(self._trainable))

    @property
    def draws_random_numbers(self) -> bool:
        """Whether random numbers may be drawn; in training mode any module may draw some."""
        return self.module.training

    @property
    def resumes(self) -> bool:
        """Whether a step can resume between two layers of its backward pass.

        A BackwardPoint holds neither what routers counted, nor the gradients that layers above gave to the keys and
        values of a layer below or to the inputs of single layers.
        """
        decoder = self.decoder
        return self.balance is None and not decoder.shares_kv and not (decoder.takes_inputs and self.trains_embedding)

    @contextlib.contextmanager
    def streaming(self, *, keep_factors: bool) -> Iterator[None]:
        """Makes the model run by tiles, and restores it and the random generators on exit.

        `keep_factors`: whether the linear layers keep for the backward pass what a single tile leaves room for.
        """
        with self.owned(keep_factors=keep_factors), self._generators.restored():
            yield

    @contextlib.contextmanager
    def owned(self, *, keep_factors: bool) -> Iterator[None]:
        """Does what `streaming` does, but leaves the random generators alone, as a capture in a CUDA graph must."""
        config = self.decoder.config
        implementation, checkpointing = config._attn_implementation, []
        config._attn_implementation = streamed_attention.IMPLEMENTATION
        for layer in self.decoder.layers:
            if getattr(layer, "gradient_checkpointing", False):
                checkpointing.append(layer)
                layer.gradient_checkpointing = False  # type: ignore[assignment]
        try:
            self.linears.begin(keep_factors=keep_factors)
            yield
        finally:
            self.linears.leave()
            self.weights.leave()
            config._attn_implementation = implementation
            for layer in checkpointing:
                layer.gradient_checkpointing = True  # type: ignore[assignment]

    def enter(self, layer: int) -> None:
        """Makes a layer's weights resident, once for all tiles of a pass."""
        self.linears.enter(layer)
        self.weights.enter(layer)

    def embed(self, run: SequenceRun, tile: int) -> Tensor:
        """Computes the first layer's input for a tile, (1, tile, hidden), and stores the layers' own inputs."""
        parts = [(x, inputs) for _, x, inputs in self.embedded(run, tile)]
        self.workspace.layer_inputs.write(tile, [inputs for _, inputs in parts])
        return parts[0][0] if len(parts) == 1 else torch.cat([x for x, _ in parts], 1)

    def embedded(self, run: SequenceRun, tile: int) -> Iterator[tuple[slice, Tensor, list[Tensor]]]:
        """Yields parts of a tile: its tokens, their input, (1, n, hidden), and each layer's own, (1, n, width).

        The inputs of all layers exist in fp32 for a moment, for which a whole tile may have no room.
        """
        with self._numbers(run, "embedding", 0, tile, first=True):
            ids = run.token_ids(tile)
            positions = run.arguments.positions(tile, len(ids))
            most = EMBEDDED_AT_ONCE if self.decoder.takes_inputs else len(ids)
            for start in range(0, len(ids), most):
                part = slice(start, min(start + most, len(ids)))
                yield part, *self.decoder.embed_for_layers(ids[None, part], positions[:, part])

    def run_layer(
        self, run: SequenceRun, layer: int, tile: int, x: Tensor, purpose: Pass, mixer: Mixer | None = None
    ) -> Tensor:
        """Computes a layer's output for a tile x, both (1, tile, hidden).

        Args:
            run: The sequence.
            layer: Number of the layer, which was entered.
            tile: Number of the tile.
            x: The layer's input.
            purpose: What the output is for.
            mixer: The layer's mixer; None for that of the run.

        Raises:
            KvCollected: in COLLECT.
            EliteError: MODEL_FAMILY_UNSUPPORTED, for a layer that couples its tokens in an unknown way.
        """
        mixer = run.mixers[layer] if mixer is None else mixer
        arguments = run.arguments.of(tile, x)[layer]
        drawing = self._numbers(run, "layer", layer, tile, first=purpose in (Pass.FORWARD, Pass.KEEP))
        recording: Any = contextlib.nullcontext([]) if self.balance is None else self.balance.recording()
        with recording as routed, drawing, mixer.running(purpose, tile, run.span(tile)) as state:
            own = self.workspace.layer_inputs.arguments(layer, tile, purpose)
            output: Any = self.decoder.layers[layer](self.decoder.unfolded(x), **{**arguments, **state, **own})
        y = self.decoder.folded(output[0] if isinstance(output, tuple) else output)
        for logits in routed:
            y = self._balanced(run, run.span(tile), logits, y, purpose)
        return y

    def _balanced(self, run: SequenceRun, span: slice, logits: Tensor, y: Tensor, purpose: Pass) -> Tensor:
        """Counts a router's choices, and attaches the gradient of the auxiliary loss to the layer's output."""
        sums, logits = run.balance, logits[: max(0, run.balanced - span.start)]
        if sums is None or purpose not in (Pass.FORWARD, Pass.KEEP, Pass.GRADIENT):
            return y
        found = probabilities_of(logits) if purpose is Pass.GRADIENT else sums.add(logits)
        return y if purpose is Pass.FORWARD else attached(y, found, sums, run.balance_factor)

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

    def close(self) -> None:
        """Frees all buffers and restores the model."""
        self.workspace.release()
        self.linears.close()
        self.weights.close()
        if self._owns_gradients:
            self.wide_gradients.close()
