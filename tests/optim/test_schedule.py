"""Schedules against torch's own, and across what a resumption may change: more updates, fewer, a rollback."""

from __future__ import annotations

import dataclasses
import itertools
from types import SimpleNamespace

import pytest
import torch
from support.runs import build, new_session
from torch.optim import lr_scheduler

from engine.config import TrainingSection
from engine.optim.schedule import make_schedule
from engine.protocol.events import StepCompleted
from engine.training.checkpoints import verify
from engine.training.loop import fit
from engine.training.recovery import _scale_rate
from engine.training.state import read_snapshot, restore

PEAKS = (1e-3, 1.6e-2)
KINDS = {
    "cosine": {"schedule": "cosine", "warmup_fraction": 0.1},
    "cosine, no warm-up": {"schedule": "cosine", "warmup_fraction": 0.0},
    "polynomial": {"schedule": "polynomial", "warmup_fraction": 0.1, "polynomial_power": 2.0},
    "straight line": {"schedule": "polynomial", "warmup_fraction": 0.0},
    "one cycle": {"schedule": "one_cycle"},
    "cosine held for averaging": {"schedule": "cosine", "warmup_fraction": 0.1, "swa_fraction": 0.25},
}


def optimizer():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(2))], "lr": peak} for peak in PEAKS]
    return torch.optim.AdamW(groups)


def walk(made, schedule, updates):
    """Rates and first betas of so many updates."""
    found = []
    for _ in range(updates):
        found.append([(group["lr"], group["betas"][0]) for group in made.param_groups])
        made.step()
        schedule.step()
    return torch.tensor(found, dtype=torch.float64)


def of_torch(made, name, total):
    """The same rates by torch's schedulers, which build each from the one before."""
    kind = KINDS[name]
    if kind["schedule"] == "one_cycle":
        return lr_scheduler.OneCycleLR(made, max_lr=list(PEAKS), total_steps=total)
    warmup = round(total * kind["warmup_fraction"])
    if kind["schedule"] == "cosine":
        fall = lr_scheduler.CosineAnnealingLR(made, T_max=total - warmup)
    else:
        fall = lr_scheduler.PolynomialLR(made, total_iters=total - warmup, power=kind.get("polynomial_power", 1.0))
    if not warmup:
        return fall
    # Its factor would be 1 at the last of `total_iters`, where the peak is already the fall's first.
    rise = lr_scheduler.LinearLR(made, start_factor=1 / warmup, total_iters=warmup - 1)
    return lr_scheduler.SequentialLR(made, [rise, fall], milestones=[warmup])


@pytest.mark.parametrize("total", [4, 10, 31, 40, 250])
@pytest.mark.parametrize("name", [name for name in KINDS if "averaging" not in name])
def test_a_whole_run_uses_the_rates_of_torch(name, total):
    ours, theirs = optimizer(), optimizer()
    found = walk(ours, make_schedule(ours, TrainingSection(**KINDS[name]), total), total)
    schedule = of_torch(theirs, name, total)
    expected = walk(theirs, schedule, total - 1)  # torch cannot be stepped past the end
    torch.testing.assert_close(found[:-1], expected, rtol=1e-9, atol=1e-15)
    last = [group["lr"] for group in theirs.param_groups]
    assert found[-1, :, 0].tolist() == pytest.approx(last, rel=1e-9, abs=1e-15)


def test_averaging_holds_the_rate_of_its_beginning():
    made, plain = optimizer(), optimizer()
    held = walk(made, make_schedule(made, TrainingSection(**KINDS["cosine held for averaging"]), 40), 40)
    whole = walk(plain, make_schedule(plain, TrainingSection(**KINDS["cosine"]), 40), 40)
    assert torch.equal(held[:31], whole[:31])
    assert torch.equal(held[30:], whole[30].expand(10, 2, 2))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("later", [24, 30, 31, 60])
@pytest.mark.parametrize("rollbacks", [0, 1, 2])
@pytest.mark.parametrize("rate", [1.0, 0.1])
def test_a_resumed_run_goes_on_as_if_it_had_been_so_from_its_beginning(name, later, rollbacks, rate):
    """With more updates, fewer, as many; another rate; after each number of rollbacks; and resumed twice."""
    training = TrainingSection(**KINDS[name])
    made = optimizer()
    schedule = make_schedule(made, training, 30)
    walk(made, schedule, 12)
    for _ in range(rollbacks):
        _scale_rate(SimpleNamespace(optimizer=made, schedule=schedule), 0.5)
    for stop in (20, later):
        saved, states = made.state_dict(), schedule.state_dict()
        made = optimizer()
        for group in made.param_groups:
            group["lr"] *= rate
        schedule = make_schedule(made, training, later)
        made.load_state_dict(saved)
        schedule.load_state_dict(states)
        whole = optimizer()
        expected = walk(whole, make_schedule(whole, training, later), later)
        expected[:, :, 0] *= rate * 0.5**rollbacks
        position = states["position"]
        found = walk(made, schedule, stop - position)
        torch.testing.assert_close(found, expected[position:stop], rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("name", KINDS)
def test_past_the_end_the_rate_stays(name):
    made = optimizer()
    found = walk(made, make_schedule(made, TrainingSection(**KINDS[name]), 10), 15)
    assert torch.equal(found[10:], found[9].expand(5, 2, 2))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("later", [24, 30, 60])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_a_state_of_torch_s_schedulers_is_taken_on(name, later, scale):
    """As checkpoints of earlier versions hold it: with the rates, and with keys in the groups, of its own total."""
    training, old = TrainingSection(**KINDS[name]), optimizer()
    if training.schedule == "one_cycle":
        schedule = lr_scheduler.OneCycleLR(old, max_lr=list(PEAKS), total_steps=30)
    else:
        schedule = lr_scheduler.LambdaLR(old, lambda step: 1 - step / 30)
    walk(old, schedule, 12)
    made = optimizer()
    resumed = make_schedule(made, training, later)
    made.load_state_dict(old.state_dict())
    resumed.load_state_dict(schedule.state_dict(), scale=scale)
    whole = optimizer()
    expected = walk(whole, make_schedule(whole, training, later), later)
    expected[:, :, 0] *= scale
    assert torch.equal(walk(made, resumed, later - 12), expected[12:])


def rates(session):
    return {event.step: event.lr for event in session.of(StepCompleted)}


@pytest.mark.parametrize("kind", ["cosine", "polynomial", "one_cycle"])
@pytest.mark.parametrize(("first", "second", "third"), [(1, 2, 3), (3, 2, 3)])
def test_a_run_of_the_loop_takes_other_numbers_of_updates(tmp_path, kind, first, second, third):
    """Ended, and resumed with more or fewer epochs, twice: each part has the rates of the run that it belongs to."""

    def settings(epochs):
        return {"training": {"schedule": kind, "epochs": float(epochs)}, "lora": {"plus_ratio": 4.0}}

    session, snapshot = new_session(tmp_path, **settings(first)), None
    for epochs in (first, second, third):
        session = new_session(tmp_path, run=session.run, resuming=snapshot is not None, **settings(epochs))
        parts, progress = build(session)
        begin = 0
        if snapshot is not None:
            restore(snapshot, parts)
            progress = dataclasses.replace(snapshot.progress, total_steps=progress.total_steps)
            begin = progress.step
        fit(session, parts, progress)
        whole = new_session(tmp_path / f"whole-{epochs}-{begin}", **settings(epochs))
        expected, fresh = build(whole)
        made = expected.schedule
        wanted = {}
        for step in range(1, fresh.total_steps + 1):
            wanted[step] = made.get_last_lr()[0]
            made.step()
        assert rates(session) == {step: rate for step, rate in wanted.items() if step > begin}
        newest = max(session.run.checkpoints_path.glob("step-*"))
        snapshot = read_snapshot(verify(newest))


def test_what_is_kept_is_a_position_a_total_and_a_scale():
    made = optimizer()
    for name, total in itertools.product(KINDS, (1, 2, 30)):
        schedule = make_schedule(made, TrainingSection(**KINDS[name]), total)
        schedule.step(3)
        schedule.scale_rate(0.5)
        assert schedule.state_dict() == {"position": 3, "total": total, "scale": 0.5}
