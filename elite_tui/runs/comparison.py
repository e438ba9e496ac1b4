"""Compares runs side by side: curves, figures, and differing configuration fields."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elite_tui.format.figures import (
    bytes_in_words,
    context_in_words,
    count_in_words,
    duration_in_words,
    number_in_words,
)
from elite_tui.runs.files import PlannedRun, read_plan
from elite_tui.runs.view import RunView
from engine import config as run_config
from engine.errors import EliteError
from engine.runs.journal import read_events
from engine.runs.run_directory import RunDirectory

RATE = "training.learning_rate"
FIM = "data.fim"
LETTERS = "ABCDEFGH"
"""Letters that tell the runs' lines apart without colour; their number limits the runs of a comparison."""


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """One run of a comparison."""

    letter: str
    path: Path
    view: RunView
    planned: PlannedRun | None
    config: Mapping[str, str]
    "Dotted field → formatted value; empty if the configuration cannot be read."


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the table: a name and each run's value."""

    name: str
    values: tuple[str, ...]
    best: int | None = None
    "Index of the run with the best value, if there is one."


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Compared runs and their table."""

    runs: tuple[ComparedRun, ...]
    figures: tuple[Row, ...]
    differing: tuple[Row, ...]
    "Configuration fields with differing values."


def read_comparison(paths: Sequence[Path]) -> Comparison:
    """Reads the runs' journals and configurations."""
    runs = tuple(_read(letter, path) for letter, path in zip(LETTERS, paths, strict=False))
    return Comparison(runs=runs, figures=_figures(runs), differing=_differing(runs))


def _read(letter: str, path: Path) -> ComparedRun:
    run = RunDirectory(path)
    view = RunView(run_id=run.id)
    for envelope in read_events(run.journal_path):
        view.apply(envelope)
    config: dict[str, str] = {}
    with contextlib.suppress(EliteError):
        config = _flat(_settings(run))
    if view.started is not None and view.started.learning_rate is not None and config.get(RATE) == _in_words(None):
        config[RATE] = f"{_in_words(None)} ({view.started.learning_rate:g})"
    if (share := run.planned_fim()) is not None and config.get(FIM) == _in_words(None):
        config[FIM] = f"{_in_words(None)} ({share:g})"
    return ComparedRun(letter=letter, path=path, view=view, planned=read_plan(run.plan_path), config=config)


def _settings(run: RunDirectory) -> Mapping[str, Any]:
    """Reads the configuration with its defaults, or the bare file if a newer engine wrote it."""
    try:
        return run_config.to_mapping(run.load_config())
    except EliteError:
        return run_config.load_mapping(run.config_path)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = _in_words(value)
    return flat


def _in_words(value: object) -> str:
    if value is None:
        return "auto"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(str(item) for item in value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _differing(runs: Sequence[ComparedRun]) -> tuple[Row, ...]:
    fields = dict.fromkeys(name for run in runs for name in run.config)
    rows = []
    for name in fields:
        values = tuple(run.config.get(name, "n/a") for run in runs)
        if len(set(values)) > 1:
            rows.append(Row(name=name, values=values))
    return tuple(rows)


def _figures(runs: Sequence[ComparedRun]) -> tuple[Row, ...]:
    views = [run.view for run in runs]

    def row(name: str, words: Sequence[str]) -> Row:
        return Row(name=name, values=tuple(words))

    def ranked(name: str, numbers: Sequence[float | None], words: Sequence[str], *, least: bool) -> Row:
        known = [number for number in numbers if number is not None]
        best = (min(known) if least else max(known)) if len(known) > 1 and len(set(known)) > 1 else None
        return Row(name=name, values=tuple(words), best=numbers.index(best) if best is not None else None)

    losses = [view.history.steps.last("loss") for view in views]
    after = [view.latest_evaluation.perplexity if view.latest_evaluation else None for view in views]
    before = [view.first_evaluation.perplexity if view.first_evaluation else None for view in views]
    speeds = [view.step.tokens_per_second if view.step else None for view in views]
    gpu = [_peak(view, "gpu_peak") for view in views]
    host = [_peak(view, "host_used") for view in views]
    return (
        row("state", [view.state for view in views]),
        row("model", [view.started.model if view.started else "n/a" for view in views]),
        row("context", [context_in_words(view.started.context) if view.started else "n/a" for view in views]),
        row("steps", [f"{view.done_steps:,}/{view.total_steps or 0:,}" for view in views]),
        row("tokens", [count_in_words(view.history.tokens) for view in views]),
        ranked("training loss", losses, [number_in_words(value) for value in losses], least=True),
        row("perplexity before", [number_in_words(value) for value in before]),
        ranked("perplexity after", after, [number_in_words(value) for value in after], least=True),
        ranked("tokens/s", speeds, [count_in_words(value) for value in speeds], least=False),
        row("time", [duration_in_words(view.history.steps.last("time")) for view in views]),
        ranked("GPU peak", gpu, [bytes_in_words(value) for value in gpu], least=True),
        ranked("RAM peak", host, [bytes_in_words(value) for value in host], least=True),
    )


def _peak(view: RunView, column: str) -> float | None:
    return max(view.history.steps.known(column), default=None)
