"""Values of odd types and sizes in a run's files, given to its readers and to the monitor's panels directly."""

from __future__ import annotations

import contextlib
import random
import re
import signal
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from elite_tui.runs import curves, finish_line, function_diffs, panels, result_panels
from elite_tui.runs.files import read_plan
from elite_tui.runs.followed import Followed
from elite_tui.runs.history import X_AXES
from elite_tui.runs.open_runs import OpenRun
from elite_tui.runs.report import read_report
from elite_tui.runs.view import RunView
from engine.errors import EliteError
from engine.export.merging import read_updates
from engine.export.source import open_source
from engine.generation.run_models import models_of
from engine.launch.handle import RunHandle
from engine.runs.run_directory import RunDirectory
from tests.chaos.lab import BrokenError, Lab
from tests.chaos.odd import odd_json
from tests.chaos.surfaces.run_directories import odd_journal

LONGEST_S = 30.0
_ESCAPE = re.compile(r"[\x07\x1b\u202e]")


def mutate_run_directories(lab: Lab, count: int) -> dict[str, int]:
    """Every reader of a run answers: the list, the monitor with its charts, the result, evaluation and export."""
    config = lab.config("odd")
    lab.reference(config)
    (folder,) = (Path(config.output.directory) / "runs").iterdir()
    run = RunDirectory(folder)
    refused = 0
    for number in range(count):
        name, readers = _FILES[number % len(_FILES)]
        path = run.path / name
        original = path.read_bytes()
        path.write_bytes(_mutated(name, original, lab.random))
        for read in readers:
            refused += _answers(read, run, f"{name} of mutation {number}")
        path.write_bytes(original)
    return {"mutated": count, "refused": refused}


def _mutated(name: str, original: bytes, rng: random.Random) -> bytes:
    return odd_journal(original, rng) if name == "events.jsonl" else odd_json(original, rng)


def _answers(read: Callable[[RunDirectory], Any], run: RunDirectory, what: str) -> bool:
    """Whether a reader refused. Raises BrokenError for any other exception, an escape, or a hang."""
    try:
        with _in_time():
            read(run)
    except EliteError as error:
        if _ESCAPE.search(str(error)) or "\n" in str(error):
            raise BrokenError(f"{what}: not one plain line: {error!r}") from error
        return True
    except Exception as error:
        raise BrokenError(f"{what}: {''.join(traceback.format_exception(error))[-1500:]}") from error
    return False


@contextlib.contextmanager
def _in_time() -> Iterator[None]:
    def late(*_: object) -> None:
        raise TimeoutError(f"no answer within {LONGEST_S:.0f} s")

    former = signal.signal(signal.SIGALRM, late)
    signal.alarm(int(LONGEST_S))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


def _monitor(run: RunDirectory) -> None:
    """Draws everything that the monitor and the result screen show."""
    shown = OpenRun(key="k", path=run.path, view=RunView(run_id=run.id))
    followed = Followed(RunHandle.attach(run))
    for _ in range(3):
        news = followed.poll()
        if news is not None:
            shown.take(news)
    report = read_report(run.path)
    drawn: list[Any] = [panels.status_line(shown), panels.notice_line(shown, 0.0)]
    for width in (20, 80, 200):
        drawn += [*panels.progress_lines(shown, width), *panels.figures(shown, (width, 20))]
    pictures = curves.RunCurves()
    for kind in curves.CHARTS:
        for axis in X_AXES:
            pictures.picture(kind.name, shown, curves.Look(x_kind=axis, smoothing=1))
    line = finish_line.finish_line(shown.view, report)
    drawn += [result_panels.not_scored(shown.view) if line is None else result_panels.change_words(line)]
    drawn += [
        *result_panels.compile_rate(report, 80),
        *result_panels.names_guessed(report, 80),
        *result_panels.foreseen(shown.view, report),
        *function_diffs.function_diffs(report.samples, 0, 80),
    ]
    for one in drawn:
        text = getattr(one, "plain", "") if one is not None else ""
        if _ESCAPE.search(text):
            raise ValueError(f"an escape would be drawn: {text[:80]!r}")


def _read_adapter(run: RunDirectory) -> None:
    read_updates(run.adapter_path)


_FILES: tuple[tuple[str, tuple[Callable[[RunDirectory], Any], ...]], ...] = (
    ("events.jsonl", (RunDirectory.summary, _monitor)),
    ("plan.json", (lambda run: read_plan(run.plan_path), lambda run: models_of(run, run.load_config()))),
    ("events.jsonl", (RunDirectory.summary, _monitor)),
    ("process.json", (RunDirectory.summary, lambda run: RunHandle.attach(run).poll())),
    (
        "adapter/adapter_config.json",
        (lambda run: open_source(run, "adapter"), lambda run: read_updates(run.adapter_path)),
    ),
)
