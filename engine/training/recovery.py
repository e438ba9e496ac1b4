"""Recovers from failures of a run by rollback, by skipping data, by retrying in less memory, or by a clean end.

| failure | recovery |
|---|---|
| OOM within the step | the step is re-planned and retried (engine.steps.oom_fallback) |
| OOM in a window that ranks share | all ranks restart the step in a smaller layout (engine.steps.oom_consensus) |
| OOM in the optimiser | a smaller step, rollback to the last snapshot, and the same updates again |
| NaN or a loss spike | rollback to the last snapshot, these updates skipped, lower rate (arXiv 2204.02311 §5.1) |
| disk full | older checkpoints are deleted, then the run waits (engine.training.disk_space) |
| GPU or driver lost | the snapshot in memory becomes the last checkpoint, and the run ends |
| another rank lost | this rank saves its current state, else the snapshot, and the run ends |
| host memory low, GPU hot | engine.training.watches |
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import EliteError, one_line
from engine.errors.distributed import RANK_FAILED, RANK_LOST
from engine.errors.runs import RUN_MOVED
from engine.errors.training import GPU_LOST, TRAINING_UNSTABLE
from engine.protocol.events import RecoveryTaken
from engine.steps.failures import (
    HostMemoryLowError,
    Place,
    is_divergence,
    is_driver_failure,
    memory_place,
    release_memory,
)
from engine.steps.oom_fallback import FallbackStep
from engine.training.spikes import SpikeDetector
from engine.training.watches import HeatWatch, HostMemoryWatch
from engine.whole_file import replace_text

if TYPE_CHECKING:
    from engine.data.window_source import Update
    from engine.runs.context import TrainingSession
    from engine.training.components import TrainerComponents
    from engine.training.rollback import RollbackStore
    from engine.training.state import Progress, Snapshot


class Recovery:
    """Recovers from the failures of one run.

    Args:
        session: Receives an event for each recovery, with its reason.
        parts: Components of the loop.
        progress: Progress of the run.
        rollback: Snapshots and checkpoints to roll back to.
        updates: All updates of the run.
    """

    def __init__(
        self,
        session: TrainingSession,
        parts: TrainerComponents,
        progress: Progress,
        rollback: RollbackStore,
        updates: Sequence[Update],
    ) -> None:
        self._session, self._parts, self._progress = session, parts, progress
        self._keeper, self._updates = rollback, updates
        self._bounds = session.config.recovery
        self._spikes = SpikeDetector(
            self._bounds.spike_threshold if self._bounds.enabled else 0.0, progress.latest_losses
        )
        self._gone_back_to: int | None = None
        self._heat = HeatWatch(session.emit)
        self._host_memory = HostMemoryWatch(
            self._bounds.host_reserve if self._bounds.enabled else 0.0,
            emit=session.emit,
            can_shrink=lambda: isinstance(parts.step, FallbackStep) and parts.step.can_shrink("host"),
        )

    def watch(self) -> None:
        """Runs the machine's watches; cheap enough for every tile of a step.

        Raises:
            HostMemoryLowError: the step should use less host memory.
            EliteError: RUN_MOVED.
        """
        self._session.check_run()
        self._heat()
        self._host_memory()

    def between_steps(self) -> None:
        """Runs the machine's watches between steps, where a smaller layout repeats no work and a pause is harmless.

        Raises:
            EliteError: OUTPUT_FULL, RUN_MOVED.
        """
        self._keeper.await_journal()
        try:
            self.watch()
        except HostMemoryLowError as error:
            self._shrink("host", str(error))

    def accept(self, loss: float) -> bool:
        """Tells whether to keep the latest update; if not, the run has rolled back.

        Raises:
            EliteError: TRAINING_UNSTABLE.
        """
        deviation = self._spikes.deviation(loss)
        if not self._spikes.is_spike(loss):
            if self._gone_back_to is not None and self._keeper.snapshot.progress.step > self._gone_back_to:
                self._gone_back_to = None  # far enough from the last failure to trust the snapshot again
            return True
        step = self._progress.step
        self._go_past(step, f"the loss of step {step:,} was {loss:.3f}, {deviation:.0f} deviations above its median")
        return False

    def handle(self, error: Exception) -> None:
        """Recovers from a failed step, so that training can continue from the run's progress; else raises.

        Raises:
            EliteError: TRAINING_UNSTABLE, or `error` itself.
        """
        step = self._progress.step + 1
        if isinstance(error, EliteError) and error.kind is RUN_MOVED:
            raise error  # there is no place to save to
        if is_driver_failure(error) or _is_lost_rank(error):
            raise error  # `keep_what_is_left` handles both, here and between steps
        if self._bounds.enabled and is_divergence(error):
            self._go_past(step, str(error.args[0]))
            return
        place = memory_place(error)
        if self._bounds.enabled and place is not None:
            self._repeat_smaller(place, error)
            return
        if isinstance(error, EliteError) or place is not None:
            # Weights and progress are still those before the failed update, so they are worth saving.
            self._keeper.save_now()
        raise error

    @contextlib.contextmanager
    def keep_what_is_left(self) -> Iterator[None]:
        """Wraps training; saves the last good state when the GPU or another rank is lost, within or between steps.

        Raises:
            EliteError: GPU_LOST in place of the driver's error.
        """
        try:
            yield
        except Exception as error:
            if is_driver_failure(error):
                raise self._gpu_lost(error, self._progress.step + 1) from error
            if _is_lost_rank(error):
                self._save_alone()
            raise

    def _save_alone(self) -> None:
        """Saves after another rank was lost. With sharded weights and states, only the newest snapshot is left."""
        try:
            self._keeper.save_now()
        except EliteError:
            self._keeper.save_snapshot()

    # --- memory ---------------------------------------------------------------------------------------------

    def _repeat_smaller(self, place: Place, error: Exception) -> None:
        """Rolls back and shrinks the step. The optimiser may have changed only some weights, so updates are redone."""
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        error.__traceback__ = None  # its frames hold tensors
        release_memory()
        snapshot = self._keeper.snapshot
        self._keeper.go_back(snapshot)
        if not self._shrink(place, why):
            self._keeper.save_now()
            raise error
        self._notify(f"went back to step {snapshot.progress.step:,}, to make the updates since then again", why)

    def _shrink(self, place: Place, why: str) -> bool:
        step = self._parts.step
        return isinstance(step, FallbackStep) and step.shrink(place, why)

    # --- divergence -----------------------------------------------------------------------------------------

    def _go_past(self, failed: int, why: str) -> None:
        """Rolls back to the last good state, skips all updates up to the failed one, and lowers the learning rate."""
        progress = self._progress
        snapshot = self._last_good()
        rate = progress.rate_scale * self._bounds.rate_factor
        if progress.rollbacks >= self._bounds.rollbacks:
            self._give_up(snapshot, why)
        self._keeper.go_back(snapshot)
        first = snapshot.progress.step + 1
        self._parts.schedule.step(failed - snapshot.progress.step)
        _scale_rate(self._parts, rate / snapshot.progress.rate_scale)
        progress.rollbacks += 1
        progress.rate_scale = rate
        progress.skipped += [step for step in range(first, failed + 1) if step not in progress.skipped]
        progress.step, progress.epoch = failed, self._updates[failed - 1].epoch
        self._gone_back_to = failed
        skipped = f"step {failed:,}" if first == failed else f"steps {first:,} to {failed:,}"
        self._notify(
            f"went back to step {snapshot.progress.step:,}, skipped the data of {skipped}, "
            f"learning rate × {self._bounds.rate_factor:g}",
            why,
        )
        self._keeper.mark()
        self._keeper.keep()

    def _last_good(self) -> Snapshot:
        """Returns the snapshot in memory; if training from that has just failed, the newest checkpoint before it."""
        snapshot = self._keeper.snapshot
        if self._gone_back_to is not None:
            older = self._keeper.checkpoint_before(self._gone_back_to)
            if older is not None:
                return older
        return snapshot

    def _give_up(self, snapshot: Snapshot, why: str) -> None:
        self._keeper.go_back(snapshot)
        self._keeper.save_now()
        run = self._session.run
        report = run.report_path
        write_recovery_report(report, run.id, self._progress, why, run.planned_rate())
        raise TRAINING_UNSTABLE(rollbacks=self._progress.rollbacks, last=why, report=report.name)

    # --- the GPU --------------------------------------------------------------------------------------------

    def _gpu_lost(self, error: Exception, step: int) -> EliteError:
        """Saves the snapshot, which is on the host; weights on the GPU may be unreadable."""
        saved = self._keeper.save_snapshot()
        kept = f"step {saved.step:,}" if saved is not None else "its last checkpoint"
        problem = str(error).strip().splitlines()[0]
        return GPU_LOST(step=step, problem=problem, kept=kept, run=self._session.run.id)

    def _notify(self, what: str, why: str) -> None:
        self._progress.recoveries.append(f"{what}: {why}")
        self._session.emit(RecoveryTaken(what=what, why=why))


def _is_lost_rank(error: Exception) -> bool:
    return isinstance(error, EliteError) and error.kind in (RANK_LOST, RANK_FAILED)


def _scale_rate(parts: TrainerComponents, ratio: float) -> None:
    """Multiplies the current and all later learning rates of the schedule."""
    parts.schedule.scale_rate(ratio)


def write_recovery_report(path: Path, run: str, progress: Progress, last: str, rate: float | None = None) -> None:
    """Writes the report and replaces an older one atomically.

    Args:
        path: Of the report.
        run: Id of the run.
        progress: What was tried.
        last: What went wrong last.
        rate: Peak learning rate of the run's plan; None if no plan says it.

    Raises:
        OSError: the disk is full or not writable.
    """
    skipped = ", ".join(map(str, progress.skipped)) or "none"
    than = "" if rate is None else f" than {rate:g}"
    lines = [
        f"# Run {run} gave up at step {progress.step:,} of {progress.total_steps:,}",
        "",
        f"After {progress.rollbacks} rollbacks the loss diverged again: {one_line(last)}",
        "",
        "## What was tried",
        "",
        *(f"- {one_line(text)}" for text in progress.recoveries),
        "",
        f"Updates passed over: {skipped}. The learning rate was lowered to {progress.rate_scale:g} of the planned.",
        "",
        "## What to do",
        "",
        "The last checkpoint holds the state before the loss diverged. Start a new run with a lower",
        f"`training.learning_rate`{than}, or look at the files that these updates learn (`engine data`).",
    ]
    replace_text(path, "\n".join(lines) + "\n")
