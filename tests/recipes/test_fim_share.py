"""A run without a share of fill-in-the-middle trains with the default's, says so, and keeps it when it resumes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from support.session import RecordingSession

from elite_tui.runs.comparison import read_comparison
from engine.config import from_mapping
from engine.protocol.commands import Stop
from engine.protocol.events import LogLine, RunFinished, WarningRaised
from engine.recipes.fine_tune import train
from engine.runs.run_directory import RunDirectory

SOURCE = Path(asyncio.__file__).parent
NAMES = ("queues.py", "locks.py", "runners.py", "mixins.py", "timeouts.py", "threads.py", "taskgroups.py")


def begin(folder, **data):
    """A run of four updates, stopped after the second."""
    repository = folder / "repository"
    repository.mkdir()
    for name in NAMES:
        (repository / name).write_text((SOURCE / name).read_text())
    config = from_mapping(
        {
            "model": {"name": "demo", "device": "cpu"},
            "data": {"repositories": [str(repository)], "licence_headers": "keep", **data},
            "lora": {"rank": 4},
            "training": {"context": 128, "tokens_per_update": 128, "max_steps": 4, "evaluate_tokens": 256},
            "evaluation": {"at_end": False},
            "output": {"directory": str(folder / "out")},
        }
    )
    session = RecordingSession(config=config, run=RunDirectory.create(config), script={2: [Stop(id="1")]})
    train(session)
    return session


def resume(first):
    session = RecordingSession(config=first.run.load_config(), run=first.run, resuming=True, script={})
    train(session)
    return session


def said(session):
    return [event.text for event in session.of(LogLine) if "fill-in-the-middle" in event.text]


def stores(session):
    return {path.name for path in (session.run.path.parent.parent / "cache").iterdir() if path.is_dir()}


def rewrite_plan(run, change):
    plan = json.loads(run.plan_path.read_text())
    change(plan)
    run.plan_path.write_text(json.dumps(plan))


def test_a_run_keeps_the_share_that_it_started_with(tmp_path, monkeypatch):
    first = begin(tmp_path)
    assert first.run.load_config().data.fim is None
    assert first.run.planned_fim() == 0.5
    [text] = said(first)
    assert text.startswith("fill-in-the-middle in 50% of ")

    # As if a later version had another default.
    monkeypatch.setattr("engine.data.fim.DEFAULT_SHARE", 1.0)
    before = stores(first)
    second = resume(first)
    assert second.of(RunFinished)[0].status == "completed"
    assert said(second) == [text]
    assert stores(first) == before
    assert not second.of(WarningRaised)
    assert first.run.planned_fim() == 0.5
    assert f"| rearranged | {text} |" in first.run.report_path.read_text()
    [compared] = read_comparison([first.run.path]).runs
    assert compared.config["data.fim"] == "auto (0.5)"


def test_a_run_of_an_earlier_version_keeps_its_files_as_they_are(tmp_path):
    first = begin(tmp_path, fim=0.0)
    rewrite_plan(first.run, lambda plan: plan.pop("fim"))
    before = stores(first)
    second = resume(first)
    assert said(first) == said(second) == []
    assert stores(first) == before
    assert not second.of(WarningRaised)
    assert first.run.data_of(first.run.load_config()).fim == 0.0


@pytest.mark.parametrize(
    ("plan", "share"),
    [
        ('{"fim": 0.5}', 0.5),
        ('{"fim": 0}', 0.0),
        ('{"fim": 2}', None),
        ('{"fim": "half"}', None),
        ('{"learning_rate": 0.1}', None),
        ("[]", None),
        ("", None),
    ],
)
def test_the_share_of_a_plan_is_read_of_any_version_and_of_damaged_ones(plan, share, tmp_path):
    run = RunDirectory(tmp_path)
    run.plan_path.write_text(plan)
    assert run.planned_fim() == share
