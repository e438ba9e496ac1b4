"""Ablation runs that differ in one optimisation each: its effect on memory, speed and held-out loss.

Each run is a training process of its own, so that peaks are its own. All train on the same tokens in the same order.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from engine.config import RunConfig
from engine.errors import EliteError
from engine.hardware.machine import Machine
from engine.launch.launcher import launch
from engine.models.spec import ModelSpec
from engine.plan.choice import choose_plan
from engine.plan.optimization_states import states
from engine.plan.optimizations import find_optimization, optimizations, toggle, with_values
from engine.protocol.commands import Stop
from engine.protocol.events import EvalCompleted, RunFailed, RunFinished, StepCompleted

WARM_UP_STEPS = 2
"""First steps left out of the speed: they allocate, compile and plan kernels."""
_POLL_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Variation:
    """One configuration to run."""

    id: str
    'Identifier of the optimisation, or "baseline".'
    on: bool
    "Whether the optimisation is on in this run."
    seed: int
    config: RunConfig


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Measurements of one run. None is a value that the run did not reach."""

    id: str
    on: bool
    seed: int
    run: str = ""
    "Name of its directory."
    steps: int = 0
    tokens: int = 0
    held_out_loss: float | None = None
    "Nats per token, of the adapter that was kept."
    loss_before: float | None = None
    "Nats per token, of the base model."
    curve: tuple[tuple[int, float], ...] = ()
    "Tokens trained on and held-out loss, at every evaluation."
    tokens_per_second: float | None = None
    "Median over the steps after the warm-up."
    gpu_peak: int | None = None
    host_peak: int | None = None
    seconds: float = 0.0
    "Duration of the whole run, loading included."
    problem: str = ""
    "Reason of its failure; empty otherwise."


def variations(
    config: RunConfig, machine: Machine, spec: ModelSpec, only: Sequence[str] = (), seeds: int = 1
) -> Iterator[Variation]:
    """Yields the baseline, then each optimisation that can act here with its state toggled.

    Args:
        config: The baseline.
        machine: The machine that runs them.
        spec: Its model.
        only: Optimisations to vary; all by default.
        seeds: Number of runs of each, with consecutive seeds from the baseline's on.

    Raises:
        EliteError: OPTIMIZATION_UNKNOWN; the baseline does not fit.
    """
    wanted = [find_optimization(name).id for name in only]
    choice = choose_plan(config, machine, spec, None)
    found = {state.id: state.state for state in states(config, machine, spec, choice)}
    for seed in range(config.training.seed, config.training.seed + seeds):
        seeded = with_values(config, {"training.seed": seed}, source="seed")
        yield Variation(id="baseline", on=True, seed=seed, config=seeded)
        for row in optimizations():
            if not row.switch_on or found[row.id] == "unavailable" or (wanted and row.id not in wanted):
                continue
            on = found[row.id] == "off"
            # Skip what the baseline excludes, or what leaves the configuration unchanged.
            with contextlib.suppress(EliteError):
                changed = toggle(seeded, row.id, on)
                if changed != seeded:
                    yield Variation(id=row.id, on=on, seed=seed, config=changed)


def measure(variation: Variation) -> Outcome:
    """Runs a variation to its end and returns its measurements."""
    began = time.monotonic()
    try:
        handle = launch(variation.config)
    except EliteError as error:
        return Outcome(id=variation.id, on=variation.on, seed=variation.seed, problem=str(error))
    steps: list[StepCompleted] = []
    scores: list[EvalCompleted] = []
    try:
        while handle.ending is None:
            for envelope in handle.poll():
                if isinstance(envelope.event, StepCompleted):
                    steps.append(envelope.event)
                elif isinstance(envelope.event, EvalCompleted):
                    scores.append(envelope.event)
            time.sleep(_POLL_S)
        handle.wait_exit(30.0)
    except KeyboardInterrupt:
        with contextlib.suppress(EliteError):
            handle.send(Stop(id="ablation", save=False))
        handle.wait_exit(30.0)
        raise
    finally:
        handle.close()
    return _outcome(variation, handle.run.id, steps, scores, handle.ending, time.monotonic() - began)


def _outcome(
    variation: Variation,
    run: str,
    steps: Sequence[StepCompleted],
    scores: Sequence[EvalCompleted],
    ending: RunFinished | RunFailed,
    seconds: float,
) -> Outcome:
    tokens = {0: 0}
    for step in steps:
        tokens[step.step] = tokens[step.step - 1] + step.tokens
    curve = tuple((tokens[score.step], score.loss) for score in scores if score.loss is not None)
    rates = [step.tokens_per_second for step in steps[WARM_UP_STEPS:] or steps]
    finished = ending if isinstance(ending, RunFinished) else None
    after = finished.perplexity_after if finished else None
    return Outcome(
        id=variation.id,
        on=variation.on,
        seed=variation.seed,
        run=run,
        steps=len(steps),
        tokens=tokens[len(steps)],
        held_out_loss=None if after is None else math.log(after),
        loss_before=curve[0][1] if curve and curve[0][0] == 0 else None,
        curve=curve,
        tokens_per_second=statistics.median(rates) if rates else None,
        gpu_peak=finished.gpu_peak if finished else None,
        host_peak=finished.host_peak if finished else None,
        seconds=seconds,
        problem=ending.message if isinstance(ending, RunFailed) else "",
    )


def tokens_to_reach(curve: Sequence[tuple[int, float]], loss: float) -> float | None:
    """Interpolates the tokens at which the held-out loss first reached `loss`; None if it never did."""
    for (before, above), (after, below) in pairwise(curve):
        if below <= loss:
            share = 1.0 if above <= below else (above - loss) / (above - below)
            return before + max(0.0, min(1.0, share)) * (after - before)
    return None


def measure_all(
    todo: Sequence[Variation], notify: Callable[[int, int, Outcome], None] = lambda *_: None
) -> list[Outcome]:
    """Runs the variations in order; calls `notify` after each with its number, the total and the outcome."""
    outcomes = []
    for number, variation in enumerate(todo, start=1):
        outcomes.append(measure(variation))
        notify(number, len(todo), outcomes[-1])
    return outcomes
