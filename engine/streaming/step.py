"""The exact streamed step: loss and gradient of one sequence, tile by tile, in bounded memory.

Three objects share the work. `StreamedModel` runs one layer on one tile, `LayerPasses` one layer over all tiles, and
the stages all layers (engine/streaming/stages.py). This module surrounds them. It prepares the sequence and the
buffers, and turns OOM into a typed error.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.models.router_balance import refuse_auxiliary_loss
from engine.models.wide_gradients import WideGradients
from engine.plan.stream_plan import StreamPlan
from engine.randomness import draw_seed
from engine.streaming.boundary import BackwardPoint
from engine.streaming.decoder import refuse_on_ranks, refuse_position_dependent_rope
from engine.streaming.mixer import Pass
from engine.streaming.out_of_memory import full_place, out_of_memory
from engine.streaming.passes import Passes
from engine.streaming.positions import TileArguments
from engine.streaming.sequence_run import SequenceRun, StepCancelled, StepRequest, TileProgress, next_token_labels
from engine.streaming.sharding import Shard, Sharding, Unsharded
from engine.streaming.stages import AllTiles, Stages
from engine.streaming.streamed_model import StreamedModel

__all__ = ["StepCancelled", "StepOutcome", "StreamedStep", "TileProgress", "next_token_labels"]


@dataclass(frozen=True, kw_only=True)
class StepOutcome:
    """Loss and timings of one step."""

    loss_sum: float
    "Summed cross-entropy over the predicted tokens, each times its coefficient, in nats."
    predicted: int
    "Number of predicted tokens."
    seconds: dict[str, float]
    "Wall time by stage: forward, loss, backward. Of a step that is not `timed`, the time to launch it."
    balance: float | None = None
    "Auxiliary loss of the routers, without its factor; None for a model without it."
    token_losses: Tensor | None = None
    "From `evaluate`: cross-entropy at each position, (context,), on the host, fp32; 0 where nothing is predicted."
    likeliest: Tensor | None = None
    "From `evaluate` with `guesses`: the likeliest next token at each position, (context,), on the host, int64."


class StreamedStep:
    """Runs streamed steps on a model, which it owns until `close`.

    Gradients accumulate in `.grad` of trainable fp32 parameters, and in `wide_gradients` for others.
    The first step allocates the buffers; every step that is no longer reuses them.

    Args:
        model: A causal language model of a supported family, alone or in a PEFT adapter, on its compute device
            (with streamed weights: on the host; everything but the decoder layers is moved to `device`).
        plan: The layout.
        device: The compute device.
        spill_directory: Directory of the files of homes on disk.
        label_smoothing: Label smoothing of the training loss; `evaluate` has none.
        wide_gradients: Collects the gradients of 16-bit parameters, and outlives this object. None: this object's
            own, in `sums`.
        sharding: Division of each sequence among the ranks.
        stages: Makes what computes a sequence; None for all layers and tiles.
        timed: Whether each step waits for the GPU after every stage, to time it.

    Raises:
        EliteError: MODEL_FAMILY_UNSUPPORTED.
        StreamPlanError: the model's weights are not stored as the plan says.
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
        sharding: Sharding | None = None,
        stages: Callable[[StreamedModel, Passes], Stages] | None = None,
        timed: bool = False,
    ) -> None:
        self.plan, self.device, self.model = plan, device, model
        self.streamed = StreamedModel(
            model, plan, device=device, spill_directory=spill_directory, wide_gradients=wide_gradients
        )
        if sharding is not None:
            refuse_auxiliary_loss(self.streamed.decoder.config, "a sequence on several ranks")
            refuse_on_ranks(self.streamed.decoder)
        self._sharding: Sharding = Unsharded() if sharding is None else sharding
        self._label_smoothing, self._make_stages, self._timed = label_smoothing, stages, timed

    def run(
        self,
        token_ids: Tensor,
        *,
        scale: float | None = None,
        labels: Tensor | None = None,
        coefficients: Tensor | None = None,
        document_starts: Sequence[int] = (0,),
        progress: Callable[[TileProgress], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
        boundary: Callable[[BackwardPoint], None] | None = None,
        resumed: BackwardPoint | None = None,
        balanced: int | None = None,
    ) -> StepOutcome:
        """Computes loss and gradient of one sequence.

        Args:
            token_ids: (context,), on any device.
            scale: Factor of the summed loss before its gradient is taken; None for 1 / predicted tokens, the mean.
            labels: Token to predict at each position, (context,), IGNORED where none. None: the next token of
                the same document.
            coefficients: Factor of each position's loss, (context,), of any sign; None for 1. They change neither
                the number of predicted tokens nor the default `scale`.
            document_starts: First positions of packed documents, ascending from 0; attention and positions do
                not cross them.
            progress: Called after every tile.
            cancelled: Called after every tile; True abandons the step.
            boundary: Called with the state after the loss and after every layer of the backward pass but the last.
            balanced: Number of leading tokens that the auxiliary loss of a model's routers counts, if it has one; None
                for all. It is added times its factor, scale and the sum of the predicted tokens' coefficients.
            resumed: State of the same sequence to continue from, with the same weights and the parameters' gradients
                of that time. The plan's tile may differ where `resumed.suits` allows it.

        Raises:
            ValueError: the random numbers of `resumed` were drawn for other tiles.
            StepCancelled: `cancelled` returned True.
            EliteError: OUT_OF_MEMORY, after this object has released all its buffers.
        """
        request = StepRequest(
            token_ids=token_ids,
            labels=next_token_labels(token_ids, document_starts) if labels is None else labels,
            coefficients=coefficients,
            document_starts=document_starts,
            progress=progress,
            cancelled=cancelled,
            boundary=boundary if self.streamed.resumes else None,
            resumed=resumed,
            balanced=balanced,
        )
        run, shard = self._begin(request)
        run.watches = boundary is not None and self.streamed.draws_random_numbers
        return self._run(run, shard, scale=1.0 / max(run.predicted, 1) if scale is None else scale)

    def evaluate(
        self,
        token_ids: Tensor,
        *,
        labels: Tensor | None = None,
        coefficients: Tensor | None = None,
        document_starts: Sequence[int] = (0,),
        progress: Callable[[TileProgress], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
        guesses: bool = False,
    ) -> StepOutcome:
        """Computes the loss of one sequence, (context,), and of each of its tokens, without a gradient.

        Arguments and errors are those of `run`; with `guesses` the likeliest tokens are found too.
        """
        request = StepRequest(
            token_ids=token_ids,
            labels=next_token_labels(token_ids, document_starts) if labels is None else labels,
            coefficients=coefficients,
            document_starts=document_starts,
            progress=progress,
            cancelled=cancelled,
            guesses=guesses,
        )
        return self._run(*self._begin(request), scale=None)

    def _begin(self, request: StepRequest) -> tuple[SequenceRun, Shard]:
        """Takes this process's part of a sequence, and draws the seed of its random numbers.

        Raises:
            ValueError: the random numbers of `resumed` were drawn for other tiles.
            EliteError: MODEL_FAMILY_UNSUPPORTED, for a context that changes the rotary tables.
        """
        refuse_position_dependent_rope(self.streamed.decoder.config, request.context)
        shard, resumed = self._sharding.shard(request, self.device), request.resumed
        if resumed is None:
            seed = draw_seed() if self.streamed.draws_random_numbers else 0  # scoring leaves the generator alone
        elif resumed.suits(self.plan.tile, shard.request.context):
            seed = resumed.seed
            torch.set_rng_state(resumed.generator)
        else:
            raise ValueError(f"random numbers were drawn for tiles of {resumed.drawn_tile}, not of {self.plan.tile}")
        run = SequenceRun(shard.request, self.plan.tile, self.device, shard.seed(seed))
        run.generator = torch.get_rng_state()
        if self.streamed.balance is not None:
            run.balance = self.streamed.balance.sums(self.device)
        if run.tiles == 1 and shard.keeps_graphs:
            layers = len(self.streamed.decoder.layers)
            run.keeps = range(max(self.streamed.lowest, layers - self.plan.keep_layers), layers)
        return run, shard

    def _run(self, run: SequenceRun, shard: Shard, *, scale: float | None) -> StepOutcome:
        self.wide_gradients.drop()  # an abandoned step may have left some
        try:
            self._prepare(run, shard)
            with self.streamed.streaming(keep_factors=run.tiles == 1):
                stages = self._stages(shard.passes(self.streamed, run))
                began = time.perf_counter()
                stages.forward(run, Pass.EVALUATE if scale is None else Pass.FORWARD)
                after_forward = self._now()
                run.loss_sum = shard.total(stages.loss(run, None if scale is None else shard.scale(scale)))
                after_loss = self._now()
                if scale is not None:
                    self._weigh_balance(run, scale)
                    stages.backward(run)
                after_backward = self._now()
        except (RuntimeError, MemoryError, OSError) as error:
            place = full_place(error)
            if place is None:
                raise
            message = out_of_memory(place, run.stage, self.model, self.streamed.decoder, self.plan, run.context)
            self.release()
            raise message from None
        return StepOutcome(
            loss_sum=float(run.loss_sum),
            predicted=run.predicted,
            seconds={
                "forward": after_forward - began,
                "loss": after_loss - after_forward,
                "backward": after_backward - after_loss,
            },
            balance=None if run.balance is None or scale is None else float(run.balance.loss()),
            token_losses=torch.cat(run.token_losses).float().cpu() if run.token_losses else None,
            likeliest=torch.cat(run.likeliest).cpu() if run.likeliest else None,
        )

    def _weigh_balance(self, run: SequenceRun, scale: float) -> None:
        if self.streamed.balance is not None:
            run.balance_factor[0] = self.streamed.balance.coefficient * scale * run.divisor

    def _prepare(self, run: SequenceRun, shard: Shard) -> None:
        """Prepares the buffers and the state of the layers for a sequence."""
        workspace, decoder = self.streamed.workspace, self.streamed.decoder
        workspace.prepare(run.context)
        workspace.layer_inputs.trains = self.streamed.trains_embedding
        run.arguments = TileArguments(
            decoder, run.context, run.document_starts, self.plan.tile, self.device, shard.positions
        )
        run.mixers = workspace.mixers(run.document_starts, lone=run.tiles == 1)

    def _stages(self, passes: Passes) -> Stages:
        if self._make_stages is not None:
            return self._make_stages(self.streamed, passes)
        return AllTiles(self.streamed, passes, self._label_smoothing)

    @property
    def wide_gradients(self) -> WideGradients:
        """Gradients of the parameters of fewer than 32 bits."""
        return self.streamed.wide_gradients

    @property
    def backend_name(self) -> str:
        """Name of the attention backend in use; "" before the first step."""
        return self.streamed.workspace.backend_name

    def _now(self) -> float:
        if self._timed and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def release(self) -> None:
        """Frees all buffers; the next step allocates them again."""
        self.streamed.workspace.release()

    def close(self) -> None:
        """Frees all buffers and restores the model."""
        self.streamed.close()

    def __enter__(self) -> StreamedStep:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
