"""What a run does when something fails: go back, skip, repeat in less memory, or end in good order.

| failure | what is done |
|---|---|
| memory full within the step | the step is re-planned and repeated (engine.steps.oom_fallback) |
| the same in a window that ranks share | all ranks begin again, in a smaller step (engine.steps.oom_consensus) |
| memory full in the optimiser | a smaller step, back to the last snapshot, and the same updates again |
| NaN or a spike of the loss | back to the last snapshot, past these updates, at a lower rate (arXiv 2204.02311 §5.1) |
| disk full | older checkpoints go, then the run waits (engine.training.disk_space) |
| GPU or driver gone | the snapshot in memory becomes the last checkpoint, and the run ends |
| another rank gone | the same with what this rank has: the present state, else the snapshot |
| host memory low, card hot | engine.training.watches |
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from engine import errors
from engine.errors import EliteError
from engine.protocol import RecoveryTaken
from engine.steps.failures import (
    HostMemoryLowError,
    Place,
    is_divergence,
    is_driver_failure,
    memory_place,
    release_memory,
)
from engine.steps.oom_fallback import FallbackStep
from engine.training.recovery_report import write_recovery_report
from engine.training.spikes import SpikeDetector
from engine.training.watches import HeatWatch, HostMemoryWatch

if TYPE_CHECKING:
    from engine.data.window_source import Update
    from engine.runs.context import TrainingSession
    from engine.training.components import TrainerComponents
    from engine.training.rollback import RollbackStore
    from engine.training.state import Progress, Snapshot


class Recovery:
    """Deals with the failures of one run.

    Args:
        session: Is told what was done, and why.
        parts: What training works with.
        progress: How far it is.
        keeper: What it can go back to.
        updates: All of the run's.
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
        self._spikes = SpikeDetector(self._bounds.spike_threshold if self._bounds.enabled else 0.0)
        self._gone_back_to: int | None = None
        self._heat = HeatWatch(session.emit)
        self._host_memory = HostMemoryWatch(
            self._bounds.host_reserve if self._bounds.enabled else 0.0,
            emit=session.emit,
            can_shrink=lambda: isinstance(parts.step, FallbackStep) and parts.step.can_shrink("host"),
        )

    def watch(self) -> None:
        """Looks after the machine; cheap enough for every tile of a step.

        Raises:
            HostMemoryLowError: the step should take less host memory.
        """
        self._heat()
        self._host_memory()

    def between_steps(self) -> None:
        """Looks after the machine where a smaller step costs nothing but its buffers, and a pause nothing at all.

        Raises:
            EliteError: OUTPUT_FULL.
        """
        self._keeper.await_journal()
        try:
            self.watch()
        except HostMemoryLowError as error:
            self._shrink("host", str(error))

    def accept(self, loss: float) -> bool:
        """Whether an update that was just made may stay; if not, the run has gone back.

        Raises:
            EliteError: TRAINING_UNSTABLE.
        """
        deviation = self._spikes.deviation(loss)
        if not self._spikes.is_spike(loss):
            if self._gone_back_to is not None and self._keeper.snapshot.progress.step > self._gone_back_to:
                self._gone_back_to = None  # far enough from the last failure to trust memory again
            return True
        step = self._progress.step
        self._go_past(step, f"the loss of step {step:,} was {loss:.3f}, {deviation:.0f} deviations above its median")
        return False

    def handle(self, error: Exception) -> None:
        """Returns when training can go on from where the run's progress now stands; else raises.

        Raises:
            EliteError: TRAINING_UNSTABLE, or `error` itself.
        """
        step = self._progress.step + 1
        if is_driver_failure(error) or _is_lost_rank(error):
            raise error  # `keep_what_is_left` meets both, here and between steps
        if self._bounds.enabled and is_divergence(error):
            self._go_past(step, str(error.args[0]))
            return
        place = memory_place(error)
        if self._bounds.enabled and place is not None:
            self._repeat_smaller(place, error)
            return
        if isinstance(error, EliteError) or place is not None:
            # Weights and progress are those before the failed update: worth keeping.
            self._keeper.save_now()
        raise error

    @contextlib.contextmanager
    def keep_what_is_left(self) -> Iterator[None]:
        """Around all of training: saves what there is when the card or another rank is gone, in a step or between two.

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
        """Another rank is gone. Where weights and states are spread, the newest snapshot is all that is left."""
        try:
            self._keeper.save_now()
        except EliteError:
            self._keeper.save_snapshot()

    # --- memory ---------------------------------------------------------------------------------------------

    def _repeat_smaller(self, place: Place, error: Exception) -> None:
        """The optimiser may have changed some weights and not others: the updates since the snapshot are made again."""
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
        """Back to the last good state, and past every update from there to the failed one, at a lower rate."""
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
        """The snapshot in memory; where that has just failed, the newest checkpoint before it."""
        snapshot = self._keeper.snapshot
        if self._gone_back_to is not None:
            older = self._keeper.checkpoint_before(self._gone_back_to)
            if older is not None:
                return older
        return snapshot

    def _give_up(self, snapshot: Snapshot, why: str) -> None:
        self._keeper.go_back(snapshot)
        self._keeper.save_now()
        report = self._session.run.report_path
        write_recovery_report(report, self._session.run.id, self._progress, why)
        raise errors.TRAINING_UNSTABLE(rollbacks=self._progress.rollbacks, last=why, report=report.name)

    # --- the card -------------------------------------------------------------------------------------------

    def _gpu_lost(self, error: Exception, step: int) -> EliteError:
        """Weights on the card may be unreadable; the snapshot is on the host."""
        saved = self._keeper.save_snapshot()
        kept = f"step {saved.step:,}" if saved is not None else "its last checkpoint"
        problem = str(error).strip().splitlines()[0]
        return errors.GPU_LOST(step=step, problem=problem, kept=kept, run=self._session.run.id)

    def _notify(self, what: str, why: str) -> None:
        self._progress.recoveries.append(f"{what}: {why}")
        self._session.emit(RecoveryTaken(what=what, why=why))


def _is_lost_rank(error: Exception) -> bool:
    return isinstance(error, EliteError) and error.kind in (errors.RANK_LOST, errors.RANK_FAILED)


def _scale_rate(parts: TrainerComponents, ratio: float) -> None:
    """Multiplies the learning rate, now and in all that the schedule will set."""
    parts.schedule.scale_rate(ratio)
