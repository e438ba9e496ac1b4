"""A rank whose memory is full: all begin again in a smaller step, and nothing of the training changes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from engine.config import RunConfig
from engine.launch import supervisor
from engine.protocol.events import RunFailed
from engine.runs.rank_files import FOLDER, write_failure
from engine.steps import oom_consensus
from tests.distributed.conftest import run_folder, train_alone
from tests.distributed.recipes import LARGEST_TILE

RING = ["distributed.strategy=ring", "training.context=512", "training.epochs=20"]


@pytest.mark.parametrize(
    "recipe", [pytest.param("too_small", marks=pytest.mark.slow), "smaller_from_the_second_step_on"]
)
def test_all_ranks_begin_again_with_a_smaller_step(tmp_path, train, recipe):
    expected, _ = train_alone(tmp_path, context=512, epochs=20)
    call = train("--gpus", "2", settings=RING, variables={"ELITE_RANK_RECIPE": f"tests.distributed.recipes:{recipe}"})
    assert call.finish() == 0, (call.error, call.events[-1])
    (message,) = call.of("RecoveryTaken")
    assert f"tile {2 * LARGEST_TILE} → {LARGEST_TILE}" in message["what"]
    assert "out of host memory" in message["why"]
    assert call.of("RunFinished")[-1]["status"] == "completed"
    assert not call.of("RunFailed")
    losses = {event["step"]: event["loss"] for event in call.of("StepCompleted")}
    assert [losses[step] for step in range(1, 5)] == pytest.approx(expected, rel=1e-5)
    first_steps = [event["first_step"] for event in call.of("RunStarted")]
    assert first_steps == ([0, 0] if recipe == "too_small" else [0, 1])
    assert not list((run_folder(tmp_path) / FOLDER).glob("*.retreat.json"))


def test_without_recovery_the_rank_that_failed_is_named(train):
    settings = [*RING, "recovery.enabled=false"]
    call = train(
        "--gpus", "2", settings=settings, variables={"ELITE_RANK_RECIPE": "tests.distributed.recipes:too_small"}
    )
    assert call.finish() != 0
    assert "rank 1 of 2" in call.events[-1]["message"]
    assert "out of host memory" in call.events[-1]["message"]
    assert not call.of("RecoveryTaken")


def test_the_first_wish_counts_and_is_forgotten_once_taken(tmp_path):
    (tmp_path / FOLDER).mkdir()
    assert oom_consensus.asked(tmp_path) is None
    oom_consensus.ask(tmp_path, 3, {"recompute": True, "stream": None}, "tile 4 → 2", "full")
    oom_consensus.ask(tmp_path, 1, {"recompute": False, "stream": None}, "tile 4 → 2", "full too")
    first = oom_consensus.asked(tmp_path)
    assert (first.rank, first.why) == (3, "full")
    oom_consensus.take(tmp_path, first)
    assert oom_consensus.asked(tmp_path) is None
    assert oom_consensus.taken(tmp_path) == first
    oom_consensus.forget(tmp_path)
    assert oom_consensus.taken(tmp_path) is None


def test_a_damaged_wish_is_no_wish(tmp_path):
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "rank-0.retreat.json").write_text('{"rank": 0')
    assert oom_consensus.asked(tmp_path) is None


def test_a_step_that_was_tried_is_not_tried_again(tmp_path, monkeypatch):
    """A rank that asks for the same again would have all of them begin again for ever."""
    attempts = []

    def attempt(session, hosts, *, resuming):
        attempts.append(resuming)
        (tmp_path / FOLDER).mkdir(exist_ok=True)
        oom_consensus.ask(tmp_path, 1, {"recompute": True, "stream": None}, "tile 4 → 2", "full")
        write_failure(tmp_path, 1, RunFailed(error="out-of-memory", message="full", hint="", exit_code=4))
        return SimpleNamespace(exits=[], error=None), None

    message = []
    session = SimpleNamespace(
        run=SimpleNamespace(path=tmp_path),
        config=RunConfig(),
        resuming=False,
        commands=SimpleNamespace(stop_requested=False),
        emit=message.append,
    )
    monkeypatch.setattr(supervisor, "_attempt", attempt)
    supervisor.train(session)
    assert attempts == [False, True]
    assert isinstance(message[-1], RunFailed)
    assert "rank 1 of" in message[-1].message
