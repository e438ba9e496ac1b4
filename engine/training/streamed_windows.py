"""The streamed way to compute a step: windows longer than the GPU could hold, tile by tile (engine.streaming)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from engine.plan.stream_plan import StreamPlan
from engine.streaming.step import StepCancelled, StreamedStep, TileProgress
from engine.training.step import StepAbandonedError, StepMonitor, StepResult, Window, count_targets


class StreamedWindows:
    """A TrainingStep over a StreamedStep, which owns the model from now on."""

    def __init__(
        self,
        model: nn.Module,
        plan: StreamPlan,
        *,
        device: torch.device,
        spill_directory: Path,
        label_smoothing: float = 0.0,
    ) -> None:
        self._model = model
        self._step = StreamedStep(
            model, plan, device=device, spill_directory=spill_directory, label_smoothing=label_smoothing
        )

    def run(self, windows: Sequence[Window], scale: float, monitor: StepMonitor) -> StepResult:
        """See TrainingStep."""
        self._model.train()

        def report(progress: TileProgress) -> None:
            monitor.progress(progress.stage, progress.done, progress.total, layer=progress.layer, tile=progress.tile)

        loss_sum = 0.0
        try:
            for window in windows:
                outcome = self._step.run(
                    torch.as_tensor(window.ids),
                    scale=scale,
                    document_starts=window.starts,
                    progress=report,
                    cancelled=monitor.stop_requested,
                )
                loss_sum += outcome.loss_sum
        except StepCancelled:
            raise StepAbandonedError from None
        return StepResult(loss_sum=loss_sum, tokens=count_targets(windows))

    def loss(self, window: Window) -> float:
        """See TrainingStep."""
        training = self._model.training
        self._model.eval()
        try:
            return self._step.evaluate(torch.as_tensor(window.ids), document_starts=window.starts).loss_sum
        finally:
            self._model.train(training)
