"""What an update does besides the optimiser: the same after resuming; averages, early stopping, the curriculum."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.runs import build, new_session

from engine.config import from_mapping
from engine.data.windows import Window
from engine.errors import EliteError
from engine.models.adapter import trainable
from engine.models.base_changes import BaseChanges
from engine.models.catalogue import find_model
from engine.optim.lr_range import range_rates, range_test
from engine.protocol.commands import Stop
from engine.protocol.events import CheckpointSaved, StepCompleted
from engine.recipes.building import build_learning
from engine.steps.micro_batch import largest_that_fits
from engine.training.checkpoints import verify
from engine.training.curriculum import Curriculum
from engine.training.early_stopping import EarlyStopping
from engine.training.loop import fit
from engine.training.state import read_snapshot, restore

STATEFUL = {
    "lookahead and ema": {"lookahead_steps": 2, "ema_decay": 0.9},
    "swa": {"swa_fraction": 0.5},
    "one cycle with noise": {"schedule": "one_cycle", "gradient_noise": 0.01, "clipping": "adaptive"},
    "8-bit states": {"optimizer": "adamw_8bit", "gradient_centralization": True},
    "polynomial, curriculum": {"schedule": "polynomial", "curriculum": True, "label_smoothing": 0.1},
    "early stopping": {"early_stopping": 50, "evaluate_every": 1},
}


@pytest.mark.parametrize("training", STATEFUL.values(), ids=STATEFUL)
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(tmp_path, training):
    lora = {"plus_ratio": 4.0, "rank": 16}

    def start(path, script=None, **more):
        session = new_session(path, script, training=training, lora=lora, **more)
        return session, *build(session)

    whole, parts, progress = start(tmp_path / "whole")
    fit(whole, parts, progress)
    expected = {name: p.detach().clone() for name, p in trainable(parts.model).items()}
    states = {name: entry.state_dict() for name, entry in parts.stateful.items()}

    first, parts, progress = start(tmp_path / "cut", {3: [Stop(id="1")]})
    assert fit(first, parts, progress) == "stopped"
    newest = first.run.path / first.of(CheckpointSaved)[-1].path
    second, parts, _ = start(tmp_path / "cut", run=first.run, resuming=True)
    snapshot = read_snapshot(verify(newest))
    restore(snapshot, parts)
    fit(second, parts, snapshot.progress)

    losses = [[e.loss for e in session.of(StepCompleted)] for session in (first, second, whole)]
    assert losses[0] + losses[1] == losses[2]
    for name, parameter in trainable(parts.model).items():
        assert torch.equal(parameter, expected[name]), name
    assert states.keys() == parts.stateful.keys()
    for name, entry in parts.stateful.items():
        for key, value in entry.state_dict().items():
            wanted = states[name][key]
            assert torch.equal(value, wanted) if isinstance(value, torch.Tensor) else value == wanted, (name, key)


def test_early_stopping_needs_something_to_watch(tmp_path):
    session = new_session(tmp_path, training={"early_stopping": 2})
    with pytest.raises(EliteError, match="evaluate_every"):
        build(session)


def test_early_stopping_keeps_the_best():
    weight = torch.nn.Parameter(torch.zeros(3))
    watch = EarlyStopping({"w": weight}, patience=2)
    for value, loss in enumerate((3.0, 2.0, 2.5, 2.1)):
        weight.data.fill_(value)
        watch.observe(loss)
    assert "2 evaluations" in watch.reason
    watch.keep_best()
    assert torch.equal(weight, torch.ones(3))


@given(context=st.integers(64, 5000), length=st.integers(2, 5000), share=st.floats(0, 1), cut=st.integers(1, 4999))
@settings(max_examples=60)
def test_a_curriculum_loses_no_token_but_one_that_has_nothing_to_predict(context, length, share, cut):
    length = min(length, context)
    starts = (0,) if cut >= length else (0, cut)
    window = Window(np.arange(length, dtype=np.int64), starts)
    curriculum = Curriculum(context=context, total_steps=100)
    pieces = curriculum.cut([window], int(100 * share))
    assert all(len(piece) <= curriculum.length(int(100 * share)) for piece in pieces)
    kept = np.concatenate([piece.ids for piece in pieces]) if pieces else np.array([])
    assert length - 2 <= len(kept) <= length
    assert all(a < b for a, b in itertools.pairwise(kept))
    if window.targets:
        assert curriculum.cut([window], 60)[0].starts == window.starts


def test_a_curriculum_keeps_a_label_that_a_cut_would_leave_unpredicted():
    labels = np.zeros((2, 100), dtype=bool)
    labels[0, 64] = labels[1, 64:66] = True
    alone, beside = (Window(np.arange(100), learnt=learnt) for learnt in labels)
    cut = Curriculum(context=512, total_steps=100).cut([alone, beside], 0)
    assert [(len(piece), piece.targets) for piece in cut] == [(100, 1), (36, 1)]


@given(limit=st.integers(0, 300), most=st.integers(1, 256))
def test_the_largest_micro_batch_is_found(limit, most):
    asked = []
    found = largest_that_fits(lambda count: asked.append(count) or count <= limit, most)
    assert found == min(limit, most)
    assert len(asked) <= 20


def test_a_range_test_stops_where_what_was_won_is_lost_again():
    losses = iter([5.0, 4.0, 3.0, 2.5, 2.4, 2.6, 4.0, 5.0, 5.0, 5.0, 5.0])
    found = range_test(lambda rate: next(losses), range_rates(1e-5, 1.0, 11))
    assert found.diverged_at is not None
    assert 1e-5 < found.suggested < found.diverged_at
    assert len(found.rates) == len(found.losses) < 11


def test_a_range_test_of_a_loss_that_is_not_finite_ends_there():
    found = range_test(lambda rate: float("nan"), range_rates(1e-5, 1.0, 11))
    assert found.diverged_at == 1e-5


def test_base_changes_are_written_beside_the_adapter_and_read_again(tmp_path):
    spec = find_model("phi-2")
    model = from_mapping({"model": {"name": "phi-2", "kv_heads": 8}}).model
    changes = BaseChanges.of(model, spec, context=8192)
    assert changes == BaseChanges(yarn_factor=4.0, kv_heads=8)
    assert changes.applied_to(spec).kv_heads == 8
    changes.save(tmp_path)
    assert BaseChanges.read(tmp_path) == changes
    unchanged = tmp_path / "unchanged"
    unchanged.mkdir()
    BaseChanges.of(model, changes.applied_to(spec), context=128).save(unchanged)
    assert not list(unchanged.iterdir())
    assert BaseChanges.read(unchanged) == BaseChanges()


def test_lora_plus_keeps_its_ratio_through_every_schedule(tmp_path):
    for schedule in ("cosine", "one_cycle"):
        session = new_session(tmp_path, training={"schedule": schedule}, lora={"plus_ratio": 8.0})
        parts, progress = build(session)
        fit(session, parts, progress)
        rates = {
            round(group["initial_lr"] / parts.optimizer.param_groups[0]["initial_lr"], 6)
            for group in parts.optimizer.param_groups
            if group["params"]
        }
        assert rates == {1.0, 8.0}


def test_learning_is_rebuilt_from_the_configuration_alone(tmp_path):
    session = new_session(tmp_path, training={"ema_decay": 0.5})
    parts, _ = build(session)
    learning = build_learning(parts.tuning, session.config, context=64, total_steps=3)
    assert list(learning.stateful) == ["average"]
