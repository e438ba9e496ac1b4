"""The loop: parity with one big batch, resuming to the bit, commands, failures."""

from __future__ import annotations

import pytest
import torch
from support.runs import WINDOWS, build, new_session

from engine.data.window_source import plan_updates
from engine.errors import EliteError
from engine.models.adapter import trainable
from engine.protocol.commands import EvaluateNow, Pause, Resume, SaveNow, Stop
from engine.protocol.events import CheckpointSaved, CommandAcked, StepCompleted
from engine.steps.whole_step import StepAbandonedError, WholeSequenceStep
from engine.training.checkpoints import verify
from engine.training.loop import fit
from engine.training.state import read_snapshot, restore


def losses(session):
    return [event.loss for event in session.of(StepCompleted)]


def weights(parts):
    return {name: parameter.detach().clone() for name, parameter in trainable(parts.model).items()}


def resume(path, session, newest, script=None, **sections):
    """A new process's view: everything built anew, then put where the checkpoint left it."""
    again = new_session(path, script, run=session.run, resuming=True, **sections)
    parts, _ = build(again)
    snapshot = read_snapshot(verify(newest))
    restore(snapshot, parts)
    return again, parts, snapshot.progress


def test_every_window_is_trained_on_once_an_epoch_and_the_loss_falls(tmp_path):
    session = new_session(tmp_path, training={"epochs": 12})
    parts, progress = build(session)
    assert fit(session, parts, progress) == "completed"
    steps = session.of(StepCompleted)
    assert [event.step for event in steps] == list(range(1, progress.total_steps + 1))
    assert sum(event.tokens for event in steps) == 12 * sum(len(WINDOWS[i]) - 1 for i in range(len(WINDOWS)))
    assert steps[-1].epoch == 12
    assert steps[-1].eta_seconds == 0
    assert losses(session)[-1] < losses(session)[0] - 1.0
    assert progress.windows == 12 * len(WINDOWS)


def test_the_first_loss_is_the_mean_over_the_tokens_of_its_windows(tmp_path):
    session = new_session(tmp_path, lora={"dropout": 0.0})
    parts, progress = build(session)
    first = next(plan_updates(WINDOWS, session.config.training, 64))
    total, count = 0.0, 0
    for index in first.windows:
        ids = torch.as_tensor(WINDOWS[index].ids)[None]
        with torch.no_grad():
            total += parts.model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    fit(session, parts, progress)
    assert losses(session)[0] == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("stop_after", [1, 4])
def test_a_stopped_and_resumed_run_is_the_uninterrupted_one_to_the_bit(tmp_path, stop_after):
    whole = new_session(tmp_path / "whole")
    whole_parts, progress = build(whole)
    fit(whole, whole_parts, progress)

    first = new_session(tmp_path / "cut", {stop_after: [Stop(id="1")]})
    parts, progress = build(first)
    assert fit(first, parts, progress) == "stopped"
    assert first.of(CommandAcked)[-1].accepted
    newest = first.run.path / first.of(CheckpointSaved)[-1].path
    second, parts, progress = resume(tmp_path, first, newest)
    torch.manual_seed(999)  # whatever the new process drew meanwhile must not matter
    restore(read_snapshot(verify(newest)), parts)
    assert progress.step == stop_after
    assert fit(second, parts, progress) == "completed"

    assert losses(first) + losses(second) == losses(whole)
    assert [e.lr for s in (first, second) for e in s.of(StepCompleted)] == [e.lr for e in whole.of(StepCompleted)]
    expected = weights(whole_parts)
    for name, weight in weights(parts).items():
        assert torch.equal(weight, expected[name]), name


class AbandonedOnce(WholeSequenceStep):
    """Draws random numbers and leaves half a gradient behind, as a long step does when it is cut short."""

    def run(self, windows, scale, monitor):
        if monitor.stop_requested():
            super().run(windows[:1], scale, Patient(monitor))
            raise StepAbandonedError
        return super().run(windows, scale, monitor)


class Patient:
    def __init__(self, monitor):
        self.progress = monitor.progress

    def stop_requested(self):
        return False


def test_a_step_abandoned_halfway_is_repeated_exactly_after_resuming(tmp_path):
    whole = new_session(tmp_path / "whole")
    whole_parts, progress = build(whole)
    fit(whole, whole_parts, progress)

    first = new_session(tmp_path / "cut")
    parts, progress = build(first, step_type=AbandonedOnce)
    inner = first.commands.poll

    def stop_arrives_within_step_three():
        command = inner()
        if progress.step == 2:
            first.commands._script[2] = [Stop(id="x")]
            first.commands.step_done(2)
        return command

    first.commands.poll = stop_arrives_within_step_three
    assert fit(first, parts, progress) == "stopped"
    assert len(losses(first)) == 2
    second, parts, progress = resume(tmp_path, first, first.run.checkpoints_path / "step-000002")
    fit(second, parts, progress)
    assert losses(first) + losses(second) == losses(whole)


def test_pause_waits_for_resume_and_other_commands_still_work(tmp_path):
    scored = []
    script = {2: [Pause(id="p"), Pause(id="q"), SaveNow(id="s"), EvaluateNow(id="e"), Resume(id="r"), Resume(id="t")]}
    session = new_session(tmp_path, script)
    parts, progress = build(session, scored=scored)
    assert fit(session, parts, progress) == "completed"
    acks = {ack.command_id: ack.accepted for ack in session.of(CommandAcked)}
    assert acks == {"p": True, "q": False, "s": True, "e": True, "r": True, "t": False}
    assert scored == [1]
    assert [saved.step for saved in session.of(CheckpointSaved)] == [2, progress.total_steps]


def test_stop_without_saving_leaves_no_checkpoint(tmp_path):
    session = new_session(tmp_path, {1: [Stop(id="1", save=False)]})
    parts, progress = build(session)
    assert fit(session, parts, progress) == "stopped"
    assert not session.of(CheckpointSaved)
    assert progress.step == 1


def test_a_stop_while_paused_ends_the_run(tmp_path):
    session = new_session(tmp_path, {1: [Pause(id="p"), Stop(id="s")]})
    parts, progress = build(session)
    assert fit(session, parts, progress) == "stopped"
    assert session.of(CheckpointSaved)[-1].step == 1


def test_held_out_files_are_scored_every_so_many_steps_but_not_at_the_end(tmp_path):
    scored = []
    session = new_session(tmp_path, training={"evaluate_every": 2})
    parts, progress = build(session, scored=scored)
    fit(session, parts, progress)
    assert progress.total_steps == 6
    assert len(scored) == 2


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_without_recovery_a_loss_that_is_not_finite_saves_what_is_good_and_says_so(tmp_path, poison):
    session = new_session(tmp_path, {}, recovery={"enabled": False})
    parts, progress = build(session)
    emit = session.emit

    def poison_the_base_model(event):
        emit(event)
        if isinstance(event, StepCompleted) and event.step == 3:
            before.update(weights(parts))
            parts.model.get_base_model().model.norm.weight.data.fill_(poison)

    before = {}
    session.emit = poison_the_base_model
    with pytest.raises(EliteError, match="step 4") as caught:
        fit(session, parts, progress)
    assert caught.value.code in ("loss-not-finite", "gradient-not-finite")
    checkpoint = verify(session.run.path / session.of(CheckpointSaved)[-1].path)
    assert checkpoint.about["step"] == 3
    _, fresh, _ = resume(tmp_path, session, checkpoint.path)
    for name, weight in weights(fresh).items():
        assert torch.equal(weight, before[name])


def test_golden_losses(tmp_path):
    """A change of these numbers is a change of what training computes: explain it, or undo it."""
    session = new_session(tmp_path, lora={"dropout": 0.0}, training={"epochs": 3})
    parts, progress = build(session)
    fit(session, parts, progress)
    assert losses(session) == pytest.approx(GOLDEN, rel=2e-4)


GOLDEN = [
    5.47536,
    5.40616,
    5.39029,
    5.33497,
    5.36192,
    5.15826,
    5.09665,
    5.12865,
    4.94817,
    4.90574,
    5.01590,
    4.88555,
    4.87752,
    4.83763,
    4.78133,
    4.80970,
    4.73326,
]
