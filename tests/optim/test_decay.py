"""Weight decay spares vectors, and what earlier versions saved of an optimiser goes on."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from steps.test_whole_step import Quiet
from support.runs import build, new_session
from support.tiny import tiny_model

from engine.config import from_mapping
from engine.data.window_source import Update
from engine.models.fine_tuning import FullTuning
from engine.optim import adamw as module
from engine.optim.adamw import adamw
from engine.randomness import capture_random
from engine.training.optimizer_step import take_optimizer_step
from engine.training.state import capture, restore

OPTIMIZERS = ["adamw", *(["adamw_8bit", "paged_adamw_8bit"] if importlib.util.find_spec("bitsandbytes") else [])]
pytestmark = pytest.mark.filterwarnings("ignore")  # paged states need a GPU, and say so


def settings(plus=1.0, kind="adamw"):
    return {
        "training": {"weight_decay": 0.1, "optimizer": kind, "warmup_fraction": 0.0},
        "lora": {"dora": True, "plus_ratio": plus},
    }


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("plus", [1.0, 16.0])
def test_magnitudes_stay_where_no_gradient_moves_them(tmp_path, kind, plus):
    parts, _ = build(new_session(tmp_path, **settings(plus, kind)))
    before = {name: p.detach().clone() for name, p in parts.tuning.weights.items()}
    assert any("magnitude" in name for name in before)
    for _ in range(20):
        for parameter in parts.tuning.weights.values():
            parameter.grad = torch.zeros_like(parameter)
        parts.optimizer.step()
    for name, parameter in parts.tuning.weights.items():
        same = torch.equal(parameter, before[name])
        assert same == (parameter.ndim == 1 or not before[name].any()), name  # B is zero at first


@pytest.mark.parametrize("plus", [1.0, 16.0])
def test_every_weight_is_in_one_group_at_its_rate(tmp_path, plus):
    parts, _ = build(new_session(tmp_path, **settings(plus)))
    names = {id(p): name for name, p in parts.tuning.weights.items()}
    seen = {}
    for group in parts.optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert name not in seen
            seen[name] = group["initial_lr"], group["weight_decay"]
    assert seen.keys() == parts.tuning.weights.keys()
    slow = min(rate for rate, _ in seen.values())
    for name, (rate, decay) in seen.items():
        assert rate / slow == pytest.approx(1.0 if "lora_A" in name else plus), name
        assert decay == (0.0 if "magnitude" in name else 0.1), name


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_of_a_whole_model_matrices_decay(kind):
    model = tiny_model("starcoder2")  # norms with biases, and biases of its products
    config = from_mapping({"training": {"method": "full", "weight_decay": 0.1, "optimizer": kind}})
    tuning = FullTuning(model, torch.device("cpu"))
    decays = {
        id(p): group["weight_decay"] for group in adamw(tuning, config, 1e-3).param_groups for p in group["params"]
    }
    for name, parameter in tuning.weights.items():
        vector = "norm" in name or name.endswith("bias")
        assert decays[id(parameter)] == (0.0 if vector else 0.1), name


@pytest.mark.parametrize("plus", [1.0, 16.0])
def test_a_checkpoint_with_magnitudes_among_the_matrices_goes_on(tmp_path, monkeypatch, plus):
    """Moments stay with their weights: the next update is that of the run that saved them, without its decay."""

    def update(parts, progress):
        take_optimizer_step(parts, progress, Update(windows=(0, 1), epoch=1.0), Quiet())

    session = new_session(tmp_path, **settings(plus))
    with monkeypatch.context() as patch:
        patch.setattr(module, "spare_vectors", lambda optimizer: None)
        old, old_progress = build(session)
    for _ in range(3):
        update(old, old_progress)
    snapshot = capture(old, old_progress, capture_random())
    parts, progress = build(session)
    assert len(parts.optimizer.param_groups) == len(old.optimizer.param_groups) + 1
    restore(snapshot, parts)
    progress.step = old_progress.step
    state_of = {name: old.optimizer.state[p] for name, p in old.tuning.weights.items()}
    for name, parameter in parts.tuning.weights.items():
        for key, value in state_of[name].items():
            assert torch.equal(parts.optimizer.state[parameter][key], value), (name, key)
    for group in old.optimizer.param_groups:
        group["weight_decay"] = 0.0
    for group in parts.optimizer.param_groups:
        assert (
            group["weight_decay"] == (0.0 if all(p.ndim == 1 for p in group["params"]) and group["params"] else 0.1)
            or not group["params"]
        )
        group["weight_decay"] = 0.0
    update(old, old_progress)
    update(parts, progress)
    for name, parameter in parts.tuning.weights.items():
        assert torch.equal(parameter, old.tuning.weights[name]), name
