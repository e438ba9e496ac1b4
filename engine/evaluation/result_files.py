"""Writes an evaluation to a run's directory: evaluation.json, and a new report.md with its charts."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from engine import regular_file
from engine.evaluation.curve import past_ratios, read_curve
from engine.evaluation.promise import Promise, compare
from engine.evaluation.report import RunReport, write_report
from engine.evaluation.result import FILE_NAME
from engine.evaluation.so_far import progress_of
from engine.generation.run_models import models_of
from engine.protocol.events import EvalCompleted, RunFinished, RunStarted
from engine.runs.journal import read_events
from engine.whole_file import replace_text

if TYPE_CHECKING:
    from engine.config import RunConfig
    from engine.data.dataset import DatasetSummary
    from engine.evaluation.result import Evaluation
    from engine.runs.run_directory import RunDirectory


def keep_evaluation(run: RunDirectory, evaluation: Evaluation) -> None:
    """Writes evaluation.json by atomic replacement.

    Raises:
        OSError: the disk is full or not writable.
    """
    replace_text(run.path / FILE_NAME, json.dumps(_finite(evaluation.as_json()), indent=1) + "\n")


def _finite(value: Any) -> Any:
    """Replaces infinities by null, which JSON lacks; a perplexity can overflow."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def rewrite_report(run: RunDirectory, config: RunConfig, evaluation: Evaluation, dataset: DatasetSummary) -> bool:
    """Rewrites a run's report with an evaluation, from the files in its directory; False if the run has not finished.

    Raises:
        EliteError: RUN_DAMAGED, RUN_WITHOUT_RESULT.
        OSError: the disk is full or not writable.
    """
    seen = _read_journal(run.journal_path)
    finished = seen.finished
    if finished is None:
        return False
    found = models_of(run, config)
    started, scored = seen.started, seen.scored
    plan = regular_file.read_object(run.plan_path)
    on_gpu = started is not None and started.planned_gpu_bytes is not None
    curve, past = read_curve(run.journal_path), tuple(past_ratios(config.model.name, before=run.id))
    promise = Promise.from_json(plan.get("promise"))
    report = RunReport(
        config=config,
        finished=finished,
        progress=progress_of(read_events(run.journal_path)),
        spec=found.spec,
        context=found.context,
        precision=str(plan["precision"]),
        device=started.device if started else "unknown",
        adapter_parameters=_parameters(found.result),
        dataset=dataset,
        held_out_scored=scored.tokens if scored else 0,
        learning_rate=run.planned_rate(),
        predicted_gpu_bytes=plan.get("gpu_peak_bytes") if on_gpu else None,
        predicted_host_bytes=plan.get("host_peak_bytes"),
        promise=None if promise is None else compare(promise, read_events(run.journal_path), curve, past),
        curve=curve,
        past=past,
        evaluation=evaluation,
    )
    write_report(run.report_path, report)
    return True


@dataclass
class _Seen:
    """What a report tells of a journal, without its million events."""

    started: RunStarted | None = None
    finished: RunFinished | None = None
    scored: EvalCompleted | None = None


def _read_journal(path: Path) -> _Seen:
    seen = _Seen()
    for envelope in read_events(path):
        event = envelope.event
        if isinstance(event, RunStarted):
            seen.started = event
        elif isinstance(event, RunFinished):
            seen.finished = event
        elif isinstance(event, EvalCompleted):
            seen.scored = event
    return seen


def _parameters(result: Path) -> int:
    """Counts the parameters in the result's files."""
    count = 0
    for path in result.glob("*.safetensors"):
        try:
            with safe_open(path, framework="pt") as file:
                count += sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
        except (OSError, SafetensorError):
            continue  # skip unreadable files
    return count
