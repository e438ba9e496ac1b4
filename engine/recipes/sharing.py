"""Chooses how the ranks of a run share its work, and the steps that do it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.distributed.powersgd import PowerSgd
from engine.distributed.torch_process_group import TorchProcessGroup
from engine.optim.build import Stateful
from engine.plan.strategy import Strategy, choose_strategy
from engine.protocol.events import LogLine
from engine.steps import oom_consensus
from engine.steps.data_parallel import DataParallelStep
from engine.steps.oom_consensus import FallbackRequest
from engine.steps.oom_fallback import FallbackStep
from engine.steps.sequence_parallel import SequenceParallelStep
from engine.steps.sequence_sharding import SequenceSharding
from engine.streaming.step import StreamedStep

if TYPE_CHECKING:
    from engine.config import RunConfig
    from engine.recipes.setup import Setup
    from engine.runs.context import TrainingSession


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """Division of a run's work among its ranks."""

    strategy: Strategy | None
    "None for a single process."
    make: Callable[..., FallbackStep]
    "Builds the step that the loop calls."
    streamed: Callable[..., StreamedStep]
    "Builds the streamed step under it."
    came_to: FallbackRequest | None = None
    "Layout that all ranks start with after an OOM on one of them in a shared window."
    stateful: Mapping[str, Stateful] = field(default_factory=dict)
    "Additional stateful components for checkpoints."

    @property
    def spreads_windows(self) -> bool:
        """Whether all ranks compute the same window together."""
        return self.strategy in ("ring", "ulysses")

    @property
    def uses_zero(self) -> bool:
        """Whether DeepSpeed owns the weights."""
        return self.strategy in ("zero2", "zero3")


ALONE = Sharing(strategy=None, make=FallbackStep, streamed=StreamedStep)


def choose_sharing(session: TrainingSession, setup: Setup) -> Sharing:
    """Chooses the strategy of a run and the steps for it.

    Raises:
        EliteError: STRATEGY_UNAVAILABLE.
    """
    group, config = session.group, session.config
    if not isinstance(group, TorchProcessGroup):
        return ALONE
    strategy = choose_strategy(
        config,
        setup.spec,
        ranks=group.size,
        streamed=setup.choice.plan.layout.stream is not None,
        spreads=setup.choice.plan.layout.window_ranks > 1,
    )
    session.emit(LogLine(level="info", text=f"{group.size} ranks share the work: {_DESCRIPTIONS[strategy]}"))
    if strategy == "ring" or strategy == "ulysses":
        order = config.distributed.ring_order
        run = session.run.path
        return Sharing(
            strategy=strategy,
            make=functools.partial(
                SequenceParallelStep, group=group, ask=functools.partial(oom_consensus.ask, run, group.rank)
            ),
            streamed=functools.partial(StreamedStep, sharding=SequenceSharding(group, strategy, order)),
            came_to=oom_consensus.taken(run),
        )
    packed = PowerSgd(group, config.distributed.compression_rank) if _compresses(config) else None
    return Sharing(
        strategy=strategy,
        make=functools.partial(DataParallelStep, group=group, add_up=packed),
        streamed=StreamedStep,
        stateful={} if packed is None else {"compression": packed},
    )


def _compresses(config: RunConfig) -> bool:
    return config.distributed.compression == "powersgd"


_DESCRIPTIONS: dict[Strategy, str] = {
    "data": "each takes windows of its own",
    "zero2": "each takes windows of its own, gradients and optimiser states are spread (ZeRO-2)",
    "zero3": "each takes windows of its own, weights, gradients and optimiser states are spread (ZeRO-3)",
    "ring": "each takes a part of every window, keys and values go round",
    "ulysses": "each takes a part of every window, and for attention a part of the heads",
}
