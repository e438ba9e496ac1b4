"""Times, memory and steps of one real run are the same in the monitor, the result, the report and the table of runs."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest

from elite_tui.format.figures import bytes_in_words, count_in_words, duration_in_words, number_in_words
from elite_tui.runs import result_panels
from elite_tui.runs.finish_line import finish_line
from elite_tui.runs.open_runs import OpenRun
from elite_tui.runs.panels import figures, progress_lines
from elite_tui.runs.report import read_report
from elite_tui.runs.view import RunView
from engine.commands.event_words import describe_ending
from engine.config import from_mapping
from engine.evaluation.so_far import progress_of, seconds_of
from engine.protocol.commands import Stop
from engine.protocol.events import PhaseChanged, RunStarted, StepCompleted
from engine.protocol.wire import Envelope
from engine.quantities import format_timing
from engine.recipes.fine_tune import train
from engine.runs.journal import JournalReader, JournalWriter
from engine.runs.run_directory import RunDirectory
from engine.runs.run_index import STATE_VARIABLE
from tests.support.session import RecordingSession

ASYNCIO = Path(asyncio.__file__).parent


class Journalled(RecordingSession):
    """Writes the journal too, as the training process does."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.writer = JournalWriter(self.run.journal_path, self.run.id)
        self.emit(PhaseChanged(phase="starting"))

    def emit(self, event):
        super().emit(event)
        self.writer.append(event)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Stopped after the second step, resumed, and completed."""
    folder = tmp_path_factory.mktemp("agreement")
    repository = folder / "shop"
    repository.mkdir()
    for name in ("queues.py", "locks.py", "mixins.py", "timeouts.py", "runners.py", "threads.py"):
        (repository / name).write_text((ASYNCIO / name).read_text())
    config = from_mapping(
        {
            "model": {"name": "demo", "device": "cpu"},
            "data": {"repositories": [str(repository)], "held_out_fraction": 0.3},
            "lora": {"rank": 4},
            "training": {"context": 128, "tokens_per_update": 256, "max_steps": 4, "evaluate_tokens": 128},
            "evaluation": {"at_end": True, "tokens": 600, "functions": 0, "lines": 0, "general": False},
            "output": {"directory": str(folder / "out")},
        }
    )
    directory = RunDirectory.create(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(STATE_VARIABLE, str(folder / "state"))
        for script, resuming in (({2: [Stop(id="1")]}, False), ({}, True)):
            session = Journalled(config=config, run=directory, script=script, resuming=resuming)
            train(session)
            session.writer.close()
    return directory


@pytest.fixture
def shown(run):
    """The run as the monitor follows it."""
    opened = OpenRun(key="k", path=run.path, view=RunView(run_id=run.id))
    for envelope in JournalReader(run.journal_path).poll():
        opened.view.apply(envelope)
    return opened


def test_the_run_of_this_test_has_two_attempts_and_is_named_after_its_repository(run, shown):
    events = JournalReader(run.journal_path).poll()
    assert sum(isinstance(one.event, RunStarted) for one in events) == 2
    assert "-shop-" in run.id
    assert run.summary().model_name == "shop"
    assert run.report_path.read_text().startswith("# shop\n")
    assert shown.view.finished.status == "completed"


def test_steps_tokens_and_time_agree(run, shown):
    done, report, summary = shown.view.finished, run.report_path.read_text(), run.summary()
    steps = [one.event for one in JournalReader(run.journal_path).poll() if isinstance(one.event, StepCompleted)]
    assert [one.step for one in steps] == [1, 2, 3, 4]
    assert done.steps == summary.step == summary.total_steps == 4
    assert done.tokens == sum(one.tokens for one in steps)

    monitor = "\n".join(line.plain for line in [*progress_lines(shown, 120), *figures(shown, (60, 40))])
    result = "\n".join(
        line.plain
        for line in [result_panels.verdict(shown.view), *result_panels.foreseen(shown.view, read_report(run.path))]
    )
    plain = "\n".join(describe_ending(run, done))
    assert "step 4/4" in monitor
    assert "4 steps" in result
    assert "4 steps" in plain
    assert "| steps | 4 of 4 (" in report
    assert f"| tokens trained on | {done.tokens:,}, " in report
    assert re.search(rf"tokens +{re.escape(count_in_words(done.tokens))}\b", monitor)
    assert f"{count_in_words(done.tokens)} tokens" in result

    # The time of both attempts, which the steps are a part of.
    each = sum(one.seconds for one in steps) / len(steps)
    assert done.seconds >= sum(one.seconds for one in steps)
    assert f"in {duration_in_words(done.seconds)}" in monitor
    assert duration_in_words(done.seconds) in result
    assert duration_in_words(done.seconds) in plain
    (told,) = re.findall(r"\| time \| (.*) in all", report)
    assert told == duration_in_words(done.seconds)
    assert re.search(rf"step time +{re.escape(duration_in_words(each))}", monitor)
    assert re.search(rf"a step .*{re.escape(duration_in_words(each))}", result)
    assert f"| {format_timing(each)} |" in report


def test_memory_agrees(run, shown):
    done = shown.view.finished
    assert done.host_peak > 1 << 20
    words = bytes_in_words(done.host_peak)
    assert re.search(rf"RAM peak +{re.escape(words)}", "\n".join(line.plain for line in figures(shown, (60, 40))))
    foreseen = "\n".join(line.plain for line in result_panels.foreseen(shown.view, read_report(run.path)))
    assert re.search(rf"RAM peak .*{re.escape(words)}", foreseen)
    assert f"| {bytes_in_words(done.host_peak)} |" in run.report_path.read_text()


def test_perplexities_agree_and_what_differs_says_so(run, shown):
    report, summary, done = read_report(run.path), run.summary(), shown.view.finished
    kept = json.loads((run.path / "evaluation.json").read_text())
    assert (summary.perplexity_before, summary.perplexity_after) == (done.perplexity_before, done.perplexity_after)
    line = finish_line(shown.view, report)
    assert (line.before, line.after) == tuple(number_in_words(kept["perplexity"][one]) for one in ("base", "tuned"))
    verdict = run.report_path.read_text()
    assert f"Perplexity {kept['perplexity']['base']:.4g} → {kept['perplexity']['tuned']:.4g} (" in verdict
    own = f"{number_in_words(done.perplexity_before)} → {number_in_words(done.perplexity_after)}"
    assert own in line.own  # scored on fewer tokens while training
    assert "too few to tell" in line.sureness
    assert "too few to tell" in verdict


def envelopes(*events):
    return [Envelope(run="r", seq=n, time=time, event=event) for n, (time, event) in enumerate(events)]


def step(number, seconds=2.0):
    return StepCompleted(
        step=number, total_steps=9, epoch=0.1, loss=1.0, lr=1.0, grad_norm=1.0, tokens=10, tokens_per_second=1.0,
        seconds=seconds,
    )  # fmt: skip


def test_steps_of_a_rollback_that_a_stopped_run_did_not_repeat_do_not_count():
    """The run's own progress goes back with the weights; only the seconds were spent."""
    progress = progress_of(envelopes(*((100.0 + n, step(k)) for n, k in enumerate((1, 2, 3, 4, 5, 3, 4)))))
    assert (progress.step, progress.tokens, progress.seconds) == (4, 40, 14.0)


def test_what_a_resumption_gave_up_and_the_time_between_attempts_do_not_count():
    started = RunStarted(model="m", context=64, total_steps=9)
    events = envelopes(
        (100.0, PhaseChanged(phase="starting")),
        (101.0, started),
        *((101.0 + n, step(n)) for n in range(1, 6)),
        # killed after the fifth step, an hour ago; its checkpoint is of the second
        (5000.0, PhaseChanged(phase="starting")),
        (5001.0, RunStarted(model="m", context=64, total_steps=9, first_step=2)),
        (5002.0, step(3)),
    )
    progress = progress_of(events)
    assert (progress.step, progress.tokens, progress.seconds) == (3, 30, 6.0)
    assert seconds_of(events, 5003.0) == 6.0 + 3.0
    assert seconds_of([], 5.0) == 0.0
    assert seconds_of(events, 0.0) == 6.0  # a clock that was set back


def test_the_parts_of_a_start_belong_to_its_attempt():
    part = PhaseChanged(phase="starting", detail="loading the libraries")
    events = envelopes(
        (100.0, PhaseChanged(phase="starting")), (101.0, part), (105.0, part), (107.0, PhaseChanged(phase="data")),
        # killed while it read; again, and killed before it did
        (5000.0, PhaseChanged(phase="starting")), (5001.0, part), (5003.0, part),
        (9000.0, PhaseChanged(phase="starting")), (9001.0, part),
    )  # fmt: skip
    assert seconds_of(events, 9004.0) == 7.0 + 3.0 + 4.0
