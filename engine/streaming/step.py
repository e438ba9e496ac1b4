"""The exact streamed step: loss and gradient of one sequence, tile by tile, in bounded memory.

The passes over layers and tiles are in engine/streaming/passes.py. This module prepares the sequence, its labels and
the buffers, swaps the model's attention function for the length of a step, and turns OOM into a typed error.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.randomness import draw_seed
from engine.streaming import attention as streamed_attention
from engine.streaming.attention import Pass
from engine.streaming.boundary import BackwardPoint
from engine.streaming.decoder import refuse_position_dependent_rope
from engine.streaming.out_of_memory import full_place, out_of_memory
from engine.streaming.passes import LayerPasses
from engine.streaming.positions import TileArguments
from engine.streaming.sequence_run import SequenceRun, StepCancelled, TileProgress, next_token_labels

__all__ = ["StepCancelled", "StepOutcome", "StreamedStep", "TileProgress", "next_token_labels"]


@dataclass(frozen=True, kw_only=True)
class StepOutcome:
    """Loss and timings of one step."""

    loss_sum: float
    "Summed cross-entropy over the predicted tokens, in nats."
    predicted: int
    "Number of predicted tokens."
    seconds: dict[str, float]
    "Wall time by stage: forward, loss, backward."
    token_losses: Tensor | None = None
    "From `evaluate`: cross-entropy at each position, (context,), on the host, fp32; 0 where nothing is predicted."


class StreamedStep(LayerPasses):
    """Runs streamed steps on a model, which it owns until `close`.

    Gradients accumulate in `.grad` of trainable fp32 parameters, and in `wide_gradients` for others.
    The first step allocates the buffers; every step that is no longer reuses them.

    Args:
        model: A causal language model of a supported family, alone or in a PEFT adapter, on its compute device
            (with `weights="streamed"`: on the host; everything but the decoder layers is moved to `device`).
        plan: The layout.
        device: The compute device.
        spill_directory: Directory for `hidden_home="disk"`.
        label_smoothing: Label smoothing of the training loss; `evaluate` has none.
        wide_gradients: Collects the gradients of 16-bit parameters, and outlives this object. None: this object's
            own, in `sums`.

    Raises:
        EliteError: MODEL_FAMILY_UNSUPPORTED.
        StreamPlanError: the model's weights are not stored as the plan says.
    """

    def run(
        self,
        token_ids: Tensor,
        *,
        scale: float | None = None,
        labels: Tensor | None = None,
        document_starts: Sequence[int] = (0,),
        progress: Callable[[TileProgress], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
        boundary: Callable[[BackwardPoint], None] | None = None,
        resumed: BackwardPoint | None = None,
    ) -> StepOutcome:
        """Computes loss and gradient of one sequence.

        Args:
            token_ids: (context,), on any device.
            scale: Factor of the summed loss before its gradient is taken; None for 1 / predicted tokens, the mean.
            labels: Token to predict at each position, (context,), IGNORED where none. None: the next token of
                the same document.
            document_starts: First positions of packed documents, ascending from 0; attention and positions do
                not cross them.
            progress: Called after every tile.
            cancelled: Called after every tile; True abandons the step.
            boundary: Called with the state after the loss and after every layer of the backward pass but the last.
            resumed: State of the same sequence to continue from, with the same weights and the parameters' gradients
                of that time. The plan's tile may differ where `resumed.suits` allows it.

        Raises:
            ValueError: the random numbers of `resumed` were drawn for other tiles.
            StepCancelled: `cancelled` returned True.
            EliteError: OUT_OF_MEMORY, after this object has released all its buffers.
        """
        run = self._sequence(token_ids, labels, document_starts, progress, cancelled, resumed)
        run.watches = boundary is not None and self._draws_random_numbers()
        return self._run(run, scale=1.0 / max(run.predicted, 1) if scale is None else scale, boundary=boundary)

    def evaluate(
        self,
        token_ids: Tensor,
        *,
        labels: Tensor | None = None,
        document_starts: Sequence[int] = (0,),
        progress: Callable[[TileProgress], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> StepOutcome:
        """Computes the loss of one sequence, (context,), and of each of its tokens, without a gradient.

        Arguments and errors are those of `run`.
        """
        return self._run(self._sequence(token_ids, labels, document_starts, progress, cancelled, None), scale=None)

    def _sequence(
        self,
        token_ids: Tensor,
        labels: Tensor | None,
        document_starts: Sequence[int],
        progress: Callable[[TileProgress], None] | None,
        cancelled: Callable[[], bool] | None,
        resumed: BackwardPoint | None,
    ) -> SequenceRun:
        labels = next_token_labels(token_ids, document_starts) if labels is None else labels
        if resumed is None:
            seed = draw_seed() if self._draws_random_numbers() else 0  # scoring leaves the generator alone
        elif resumed.suits(self.plan.tile, token_ids.shape[0]):
            seed = resumed.seed
            torch.set_rng_state(resumed.generator)
        else:
            raise ValueError(f"random numbers were drawn for tiles of {resumed.drawn_tile}, not of {self.plan.tile}")
        run = SequenceRun(token_ids, labels, document_starts, self.plan.tile, self.device, progress, cancelled, seed)
        run.resumed, run.generator = resumed, torch.get_rng_state()
        run.drew = resumed is not None and resumed.drawn_tile is not None
        if run.tiles == 1:
            layers = len(self.decoder.layers)
            run.keeps = range(max(self._lowest, layers - self.plan.keep_layers), layers)
        return run

    def _run(
        self, state: SequenceRun, *, scale: float | None, boundary: Callable[[BackwardPoint], None] | None = None
    ) -> StepOutcome:
        backward = scale is not None
        self._linears.begin(keep_factors=state.tiles == 1)
        self.wide_gradients.drop()  # an abandoned step may have left some
        try:
            with self._owning(state):
                began = time.perf_counter()
                self._forward(state, Pass.FORWARD if backward else Pass.EVALUATE)
                after_forward = self._now()
                state.loss_sum = self._loss(state, scale)
                after_loss = self._now()
                if backward:
                    self._backward(state, boundary)
                after_backward = self._now()
        except (RuntimeError, MemoryError, OSError) as error:
            place = full_place(error)
            if place is None:
                raise
            message = out_of_memory(place, state.stage, self.model, self.decoder, self.plan, state.context)
            self._workspace.release()
            raise message from None
        return StepOutcome(
            loss_sum=state.loss_sum,
            predicted=state.predicted,
            seconds={
                "forward": after_forward - began,
                "loss": after_loss - after_forward,
                "backward": after_backward - after_loss,
            },
            token_losses=torch.cat(state.token_losses).float().cpu() if state.token_losses else None,
        )

    # --- setup and teardown ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _owning(self, run: SequenceRun) -> Iterator[None]:
        """Prepares the buffers, and replaces the model's attention for the length of a step."""
        run.stage = "preparation"
        refuse_position_dependent_rope(self.decoder.config, run.context)
        self._workspace.prepare(run.context)
        run.arguments = self._tile_arguments(run)
        config = self.decoder.config
        implementation, checkpointing = config._attn_implementation, []
        config._attn_implementation = streamed_attention.IMPLEMENTATION
        for layer in self.decoder.layers:
            if getattr(layer, "gradient_checkpointing", False):
                checkpointing.append(layer)
                layer.gradient_checkpointing = False  # type: ignore[assignment]
        self._workspace.attention.begin_sequence(run.document_starts, lone=run.tiles == 1)
        streamed_attention.activate(self._workspace.attention)
        try:
            with self._generators.restored():
                yield
        finally:
            self._linears.leave()
            self._weights.leave()
            streamed_attention.activate(None)
            config._attn_implementation = implementation
            for layer in checkpointing:
                layer.gradient_checkpointing = True  # type: ignore[assignment]

    def _tile_arguments(self, run: SequenceRun) -> TileArguments:
        return TileArguments(self.decoder, run.context, run.document_starts, self.plan.tile, self.device)

    @property
    def backend_name(self) -> str:
        """Name of the attention backend in use; "" before the first step."""
        return self._workspace.backend_name

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def release(self) -> None:
        """Frees all buffers; the next step allocates them again."""
        self._workspace.release()

    def close(self) -> None:
        """Frees all buffers and restores the model."""
        self.release()
        self._linears.close()
        self._weights.close()
        if self._owns_gradients:
            self.wide_gradients.close()

    def __enter__(self) -> StreamedStep:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
