"""A run without a configured rate trains at the rate of its plan, says so everywhere, and keeps it when it resumes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from support.session import RecordingSession

from engine.config import from_mapping
from engine.evaluation.promise import Promise
from engine.export.card import render_card
from engine.export.source import open_source
from engine.launch.preflight import check_and_plan
from engine.protocol.commands import Stop
from engine.protocol.events import RunStarted, StepCompleted
from engine.recipes.fine_tune import train
from engine.runs.run_directory import RunDirectory
from engine.training.recovery import write_recovery_report
from engine.training.state import Progress

SOURCE = Path(asyncio.__file__).parent
DEMO_RATE = 1.8e-3
"""By hand, in tests/plan/test_learning_rate.py."""


def begin(folder, **training):
    """A run of four updates at a constant rate, stopped after the second."""
    repository = folder / "repository"
    repository.mkdir()
    for name in ("queues.py", "locks.py", "runners.py"):
        (repository / name).write_text((SOURCE / name).read_text())
    fixed = {"context": 128, "tokens_per_update": 128, "max_steps": 4, "evaluate_tokens": 256, "warmup_fraction": 0.0}
    config = from_mapping(
        {
            "model": {"name": "demo", "device": "cpu"},
            "data": {"repositories": [str(repository)]},
            "lora": {"rank": 4},
            "training": {**fixed, "polynomial_power": 1e-9, "schedule": "polynomial", **training},
            "evaluation": {"at_end": False},
            "output": {"directory": str(folder / "out")},
        }
    )
    session = RecordingSession(config=config, run=RunDirectory.create(config), script={2: [Stop(id="1")]})
    assert deepspeed_rate(session.run) == training.get("learning_rate", "auto")
    train(session)
    return session


def deepspeed_rate(run):
    return json.loads(run.deepspeed_path.read_text())["optimizer"]["params"]["lr"]


def test_a_run_promises_what_its_checks_did(tmp_path):
    run = begin(tmp_path).run
    _, choice = check_and_plan(run.load_config())
    assert json.loads(run.plan_path.read_text())["note"] == choice.note


def resume(first):
    config = first.run.load_config()
    session = RecordingSession(config=config, run=first.run, resuming=True, script={})
    train(session)
    return session


def rates(session):
    return [event.lr for event in session.of(StepCompleted)]


def rewrite_plan(run, change):
    plan = json.loads(run.plan_path.read_text())
    change(plan)
    run.plan_path.write_text(json.dumps(plan))


def test_a_run_keeps_the_rate_that_it_started_with(tmp_path):
    first = begin(tmp_path)
    assert deepspeed_rate(first.run) == DEMO_RATE
    assert first.run.load_config().training.learning_rate is None
    assert first.of(RunStarted)[0].learning_rate == first.run.planned_rate() == DEMO_RATE
    assert rates(first) == pytest.approx([DEMO_RATE, DEMO_RATE])

    # As if the rule had been another one when the run started.
    rewrite_plan(first.run, lambda plan: plan.update(learning_rate=7e-4))
    second = resume(first)
    assert second.of(RunStarted)[0].learning_rate == 7e-4
    assert rates(second) == pytest.approx([7e-4, 7e-4])
    assert "| learning rate | 0.0007 (automatic)," in first.run.report_path.read_text()
    assert "rate 0.0007 (automatic)," in render_card(open_source(first.run, "adapter"), "adapter", None, "", [])
    assert json.loads(first.run.plan_path.read_text())["learning_rate"] == 7e-4
    assert Promise.from_json(json.loads(first.run.plan_path.read_text())["promise"]) is not None


def test_a_run_of_an_earlier_version_keeps_its_configured_rate(tmp_path):
    first = begin(tmp_path, learning_rate=2e-4)
    rewrite_plan(first.run, lambda plan: plan.pop("learning_rate"))
    assert first.run.planned_rate() is None
    second = resume(first)
    assert rates(first) + rates(second) == pytest.approx([2e-4] * 4)
    assert "| learning rate | 0.0002," in first.run.report_path.read_text()


def test_a_run_that_gives_up_names_the_rate_to_go_below(tmp_path):
    write_recovery_report(tmp_path / "report.md", "r", Progress(total_steps=4), "loss 9", 1.8e-3)
    assert "a lower\n`training.learning_rate` than 0.0018, or" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("plan", "rate"),
    [
        ('{"learning_rate": 0.001}', 1e-3),
        ('{"schedule": {"learning_rate": 0.002}}', 2e-3),
        ('{"schedule": null}', None),
        ('{"learning_rate": -1}', None),
        ('{"learning_rate": "fast"}', None),
        ("[]", None),
        ("", None),
    ],
)
def test_the_rate_of_a_plan_is_read_of_any_version_and_of_damaged_ones(plan, rate, tmp_path):
    run = RunDirectory(tmp_path)
    run.plan_path.write_text(plan)
    assert run.planned_rate() == rate
