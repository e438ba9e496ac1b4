"""The streamed TrainingStep, for windows that do not fit on the GPU, tile by tile (engine.streaming)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from engine.models.fine_tuning import FineTuning
from engine.models.mode import ModelMode
from engine.plan.stream_plan import StreamPlan
from engine.steps.padding import coefficients_of, filled, labels_of
from engine.steps.partial_checkpoint import PartialCheckpointStore, PartialState
from engine.steps.whole_step import StepAbandonedError, StepMonitor, StepResult, TokenScores, Window, count_targets
from engine.streaming.boundary import BackwardPoint
from engine.streaming.step import StepCancelled, StepOutcome, StreamedStep, TileProgress
from engine.streaming.step_graph import ShortSequence, StepGraphs


def short_sequence(window: Window, whole: Window) -> ShortSequence:
    """Makes the inputs of a captured step from a window, and the same window padded."""
    return ShortSequence(
        ids=torch.as_tensor(whole.ids, dtype=torch.long),
        labels=labels_of(window, len(whole)),
        positions=torch.as_tensor(whole.positions(), dtype=torch.long),
        starts=whole.starts,
    )


class StreamedWindows:
    """A TrainingStep over a StreamedStep, which owns the model until `close`.

    Args:
        tuning: Owns the model and the trained weights.
        plan: The layout.
        device: The compute device.
        spill_directory: Directory of the files of homes on disk.
        label_smoothing: Label smoothing of the training loss.
        store: Saves a long step's state; None to save none.
        make: StreamedStep, with the sharding of several ranks.
        fill_up_to: Longest window, where each is padded to one of few lengths (engine.steps.padding).
        graphs: Whether short steps may run as CUDA graphs (engine.streaming.step_graph).
        notify: Called with what was decided about graphs, in words.
    """

    def __init__(
        self,
        tuning: FineTuning,
        plan: StreamPlan,
        *,
        device: torch.device,
        spill_directory: Path,
        label_smoothing: float = 0.0,
        store: PartialCheckpointStore | None = None,
        make: Callable[..., StreamedStep] = StreamedStep,
        fill_up_to: int | None = None,
        graphs: bool = False,
        notify: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._mode = ModelMode(tuning.model)
        self._weights, self._store, self._fill_up_to = tuning.weights, store, fill_up_to
        masters = tuning.masters
        self._step = make(
            tuning.model,
            plan,
            device=device,
            spill_directory=spill_directory,
            label_smoothing=label_smoothing,
            wide_gradients=None if masters is None else masters.gradients,
        )
        self._graphs: StepGraphs | None = None
        if graphs and make is StreamedStep:
            trained = [weight for weight in tuning.weights.values() if weight.requires_grad]
            self._graphs = StepGraphs(self._step.streamed, trained, label_smoothing, notify)

    def run(self, windows: Sequence[Window], scale: float, monitor: StepMonitor) -> StepResult:
        """See TrainingStep. With a store, an interrupted step resumes from its last partial checkpoint."""
        self._mode.train()
        store, whole = self._store, [filled(window, self._fill_up_to) for window in windows]

        def report(progress: TileProgress) -> None:
            monitor.progress(progress.stage, progress.done, progress.total, layer=progress.layer, tile=progress.tile)

        def cancelled() -> bool:
            return monitor.stop_requested() and not (store is not None and store.boundary_is_near())

        def keep(number: int, loss_before: float | torch.Tensor, point: BackwardPoint) -> None:
            assert store is not None
            state = PartialState(window=number, loss_before=float(loss_before), point=point)
            stopping = monitor.stop_requested()
            store.at_boundary(self._weights, whole, scale, state, stopping=stopping)
            if stopping:
                raise StepCancelled

        resumed = None if store is None else store.begin(self._weights, whole, scale, self._step.plan.tile)
        first = 0 if resumed is None else resumed.window
        loss_sum: float | torch.Tensor = 0.0 if resumed is None else resumed.loss_before
        try:
            for number in range(first, len(windows)):
                ordinary = functools.partial(
                    self._step.run,
                    torch.as_tensor(whole[number].ids),
                    scale=scale,
                    labels=labels_of(windows[number], len(whole[number])),
                    coefficients=coefficients_of(windows[number], len(whole[number])),
                    document_starts=whole[number].starts,
                    progress=report,
                    cancelled=cancelled,
                    boundary=None if store is None else functools.partial(keep, number, loss_sum),
                    balanced=len(windows[number]),
                    resumed=resumed.point if resumed is not None and number == first else None,
                )
                if self._graphs is None or windows[number].weights is not None or resumed is not None:
                    loss_sum += ordinary().loss_sum
                    continue
                if monitor.stop_requested():
                    raise StepCancelled
                loss_sum += self._graphs.run(short_sequence(windows[number], whole[number]), scale, ordinary)
        except StepCancelled:
            raise StepAbandonedError from None
        return StepResult(summed=loss_sum, tokens=count_targets(windows))

    def loss(self, window: Window) -> float:
        """See TrainingStep."""
        return self._evaluated(window).loss_sum

    def token_scores(self, window: Window) -> TokenScores:
        """See ScoringStep."""
        found, predicted = self._evaluated(window, guesses=True), len(window) - 1
        assert found.token_losses is not None
        assert found.likeliest is not None
        return TokenScores(found.token_losses.numpy()[:predicted], found.likeliest.numpy()[:predicted])

    def _evaluated(self, window: Window, *, guesses: bool = False) -> StepOutcome:
        whole = filled(window, self._fill_up_to)
        labels = labels_of(window, len(whole))
        with self._mode.evaluating():
            return self._step.evaluate(
                torch.as_tensor(whole.ids),
                labels=labels,
                coefficients=coefficients_of(window, len(whole)),
                document_starts=whole.starts,
                guesses=guesses,
            )

    def close(self) -> None:
        """Frees all buffers and restores the model."""
        if self._graphs is not None:
            self._graphs.close()
        self._step.close()
