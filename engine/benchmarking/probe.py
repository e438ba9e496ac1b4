"""Runs the most expensive part of a plan: the last tile with its whole prefix, through one decoder layer.

Weights are random, and the prefix's keys and values uninitialised, since time and bytes do not depend on them. The
first tile, which has no prefix, runs too. All costs of the prefix grow linearly with its length, up to a sliding
window, so the two give the mean over all tiles.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from engine.benchmarking.streaming import reset_peak, synchronize
from engine.config import LoraSection
from engine.data.windows import Window
from engine.models.adapter import attach_adapter
from engine.models.fused import fuse_kernels
from engine.models.placement import Placement
from engine.models.random import random_model
from engine.models.spec import ModelSpec
from engine.plan.stream_plan import StreamPlan
from engine.steps.whole_step import StepMonitor, WholeSequenceStep
from engine.streaming.loss import loss_and_gradient
from engine.streaming.mixer import KvCollected, Pass
from engine.streaming.passes import Passes
from engine.streaming.sequence_run import SequenceRun
from engine.streaming.stages import Stages
from engine.streaming.step import StreamedStep
from engine.streaming.streamed_model import StreamedModel
from engine.streaming.tile_attention import AttentionMixer

_REPEATS, _LEAST_SECONDS, _MOST_REPEATS = 3, 0.25, 50
"""Bounds on a tile's repeats, chosen so that filling and draining the queue once hardly counts. With three runs the
probe of a 0.5B model at 64K tokens came out 12% too long on an H200, attributed to that (docs/benchmarks.md)."""


@dataclass(frozen=True, kw_only=True)
class Probed:
    """Measurements of a probe."""

    layers: int
    "Number of decoder layers that ran."
    gpu_allocated: int | None
    "Peak bytes of tensors on the GPU; None without one."
    host: int
    "Bytes by which the process grew."
    step_seconds: float
    "Seconds of a whole window through all layers, extrapolated."


def probe_streamed(
    spec: ModelSpec, context: int, plan: StreamPlan, placement: Placement, *, rank: int, spill_directory: Path
) -> Probed:
    """Runs the first and the last tile of a context through one layer of the streamed step.

    Args:
        spec: The model, with all its layers.
        context: Tokens per window.
        plan: Layout of the step.
        placement: Device and number formats.
        rank: Rank of the adapter.
        spill_directory: Folder of the files of homes on disk.

    Raises:
        EliteError: OUT_OF_MEMORY.
        StreamPlanError: the plan does not fit the model or the machine.
    """
    device = placement.device
    before = psutil.Process().memory_info().rss
    home = torch.device("cpu") if plan.streams_weights else device
    base = random_model(spec, placement, layers=1, weights_device=home)
    fuse_kernels(base, device)
    model = attach_adapter(base, LoraSection(rank=rank), seed=0).train()
    tokens = torch.randint(0, spec.vocab_size, (context,), generator=torch.Generator().manual_seed(0))
    ends = _FirstAndLastTile(plan)
    with StreamedStep(model, plan, device=device, spill_directory=spill_directory, stages=ends.of) as step:
        step.run(tokens)  # warm-up: plans kernels and allocates the buffers
        model.zero_grad(set_to_none=True)
        reset_peak(device)
        step.run(tokens)
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
        grown = psutil.Process().memory_info().rss - before
        seconds = ends.extrapolate(spec.layers, -(-context // plan.tile))
    return Probed(layers=1, gpu_allocated=peak, host=grown, step_seconds=seconds)


class _FirstAndLastTile:
    """The Stages of a step over two tiles of one layer; its gradients are meaningless, its allocations a full step's.

    Args:
        plan: Layout of the step.
    """

    def __init__(self, plan: StreamPlan) -> None:
        self._plan = plan
        self._seconds: dict[str, dict[int, float]] = {}
        self._reach: int | None = None

    def of(self, model: StreamedModel, _: Passes) -> Stages:
        """Returns these stages for a step's model; the passes run all tiles, and are not needed."""
        self._model, self._hidden = model, model.workspace.hidden
        return self

    def extrapolate(self, layers: int, tiles: int) -> float:
        """Returns the seconds of a step over all layers and tiles."""
        grows = (tiles if self._reach is None else self._reach + 1) / tiles  # share of tiles with more keys each

        def mean(stage: str) -> float:
            first, last = self._seconds[stage][0], self._seconds[stage][max(self._seconds[stage])]
            return last - (last - first) * grows / 2

        forward, backward = mean("forward"), mean("backward")
        again = 1 - 1 / self._plan.checkpoint_every
        return layers * tiles * ((1 + again) * forward + backward) + tiles * self._seconds["loss"][0]

    def _ends(self, run: SequenceRun) -> tuple[int, ...]:
        """Returns the first and the last tile. A single tile is both, and runs once since reading frees its input."""
        return (0, run.tiles - 1) if run.tiles > 1 else (0,)

    def _hold_keys_before(self, run: SequenceRun, tile: int) -> None:
        """Computes the keys before a tile, since a ring returns keys only of tiles that it holds."""
        mixer = run.mixers[0]
        if not isinstance(mixer, AttentionMixer):
            return
        for below in mixer.below(tile, run.tiles):
            x = self._model.embed(run, below)
            with torch.no_grad(), contextlib.suppress(KvCollected):
                self._model.run_layer(run, 0, below, x, Pass.COLLECT)
        self._reach = mixer.reach

    def _timed(self, stage: str, end: int, work: Callable[[], None]) -> None:
        """Records the mean time of consecutive runs, as tiles are consecutive in a step."""
        device = self._model.device

        def seconds(repeats: int) -> float:
            synchronize(device)
            began = time.perf_counter()
            for _ in range(repeats):
                work()
            synchronize(device)
            return (time.perf_counter() - began) / repeats

        work()
        enough = math.ceil(_LEAST_SECONDS / max(seconds(1), 1e-9))
        self._seconds.setdefault(stage, {})[end] = seconds(min(max(_REPEATS, enough), _MOST_REPEATS))

    def forward(self, run: SequenceRun, purpose: Pass) -> None:
        """See Stages."""
        run.enter("forward", len(self._ends(run)))
        self._seconds.clear()
        hidden = self._hidden
        with torch.no_grad():
            for tile in range(run.tiles):  # as in a step, all tiles' rotary tables are computed, and kept if they fit
                embedded = self._model.embed(run, tile)
                run.arguments.of(tile, embedded)
                if tile in self._ends(run):
                    hidden.write(0, tile, embedded[0])
            self._model.enter(0)
            for end, tile in enumerate(self._ends(run)):
                self._hold_keys_before(run, tile)

                def work(tile: int = tile) -> None:
                    x = hidden.read(0, tile).unsqueeze(0)
                    hidden.write(1, tile, self._model.run_layer(run, 0, tile, x, purpose)[0])

                self._timed("forward", end, work)
                run.advance(0, tile)

    def loss(self, run: SequenceRun, scale: float | None) -> float:
        """See Stages."""
        run.enter("loss", len(self._ends(run)))
        hidden, decoder, total = self._hidden, self._model.decoder, 0.0
        for end, tile in enumerate(self._ends(run)):
            losses: list[Tensor] = []

            def work(tile: int = tile, losses: list[Tensor] = losses) -> None:
                x = hidden.read(1, tile).unsqueeze(0).detach().requires_grad_()
                normed = decoder.final_norm(x)
                loss, gradient = loss_and_gradient(
                    normed[0].detach(),
                    run.labels(tile),
                    decoder.head,
                    piece=self._plan.loss_piece,
                    scale=1.0 if scale is None else scale,
                )
                torch.autograd.backward(normed, gradient.unsqueeze(0), inputs=[x])
                losses.append(loss)

            self._timed("loss", end, work)
            # A gradient as from the layer above; the loss's own would overwrite its input.
            hidden.write_gradient(tile, torch.zeros_like(hidden.read(0, tile)))
            total += float(losses[-1])
            run.advance(1, tile)
        return total

    def backward(self, run: SequenceRun) -> None:
        """See Stages."""
        run.enter("backward", len(self._ends(run)))
        hidden, mixer = self._hidden, run.mixers[0]
        self._model.enter(0)
        self._model.linears.want_output(wanted=False)
        mixer.begin_backward()
        for end, tile in reversed(list(enumerate(self._ends(run)))):
            self._hold_keys_before(run, tile)

            def work(tile: int = tile) -> None:
                x = hidden.read(0, tile).unsqueeze(0).detach().requires_grad_()
                gradient = hidden.read_gradient(tile).unsqueeze(0)
                mixer.backward(tile, self._model.run_layer(run, 0, tile, x, Pass.GRADIENT), gradient)
                self._model.workspace.layer_inputs.forget(0, tile)
                assert x.grad is not None
                hidden.write_gradient(tile, x.grad[0])

            self._timed("backward", end, work)
            run.advance(0, tile)


def probe_window(spec: ModelSpec, context: int, placement: Placement, *, rank: int, recompute: bool) -> Probed:
    """Runs a whole window through one layer and through two; the difference is the cost of each further layer.

    Arguments as for `probe_streamed`; `recompute` is gradient checkpointing.
    """
    device = placement.device
    before = psutil.Process().memory_info().rss
    seconds = []
    for layers in (1, 2):
        base = random_model(spec, placement, layers=layers)
        fuse_kernels(base, device)
        model = attach_adapter(base, LoraSection(rank=rank), seed=0)
        step = WholeSequenceStep(model, recompute=recompute, autocast=lambda: _autocast(placement))
        window = Window(torch.randint(0, spec.vocab_size, (context,)).numpy())
        reset_peak(device)
        for _ in range(2):
            model.zero_grad(set_to_none=True)
            synchronize(device)
            began = time.perf_counter()
            step.run([window], 1.0 / context, _Silent())
            synchronize(device)
            taken = time.perf_counter() - began
        seconds.append(taken)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    grown = psutil.Process().memory_info().rss - before
    one, two = seconds
    whole = one + (spec.layers - 1) * max(two - one, 0.0)
    return Probed(layers=2, gpu_allocated=peak, host=grown, step_seconds=whole)


def _autocast(placement: Placement) -> Any:
    enabled = placement.compute != "fp32"
    return torch.autocast(placement.device.type, dtype=placement.dtype if enabled else None, enabled=enabled)


class _Silent(StepMonitor):
    """A StepMonitor that reports nothing and never stops the step."""

    def progress(self, stage: str, done: int, total: int, *, layer: int | None = None, tile: int | None = None) -> None:
        pass

    def stop_requested(self) -> bool:
        return False
