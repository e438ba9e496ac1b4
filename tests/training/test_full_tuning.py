"""Training every weight: the same result as plain AdamW, whole or streamed, in fp32 and over fp32 masters."""

from __future__ import annotations

import copy

import pytest
import torch
from recipes.test_fine_tune import ASYNCIO, again, start
from steps.test_whole_step import Quiet
from support.runs import WINDOWS
from support.tiny import patterned_windows, tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.config import from_mapping
from engine.errors import EliteError
from engine.hardware.inventory import take_inventory
from engine.models.catalogue import find_model
from engine.models.fine_tuning import FullTuning
from engine.optim.build import build_updating
from engine.plan.choice import choose_plan
from engine.plan.stream_plan import StreamPlan
from engine.protocol.commands import Stop
from engine.protocol.events import LogLine
from engine.recipes.fine_tune import train
from engine.steps.streamed_windows import StreamedWindows
from engine.steps.whole_step import WholeSequenceStep, count_targets
from engine.training.checkpoints import verify
from engine.training.state import read_snapshot

CPU = torch.device("cpu")
UPDATES = [WINDOWS[at : at + 2] for at in range(0, 8, 2)]
SETTINGS = {"training": {"method": "full", "learning_rate": 0.01, "weight_decay": 0.1, "warmup_fraction": 0.0}}


def plain(model, updates):
    """The reference: transformers' own loss, torch's AdamW, clipping by norm, the run's schedule."""
    model.requires_grad_(True)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    for number, windows in enumerate(updates):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * number / len(updates)))).item()
        optimizer.zero_grad()
        targets = count_targets(windows)
        for window in windows:
            ids = torch.as_tensor(window.ids)[None]
            (model(input_ids=ids, labels=ids).loss * (ids.shape[1] - 1) / targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return {name: p.detach().float() for name, p in model.named_parameters()}


def tuned(model, way_of, updates):
    """The same by the engine's parts."""
    tuning = FullTuning(model, CPU)
    updating = build_updating(tuning, from_mapping(SETTINGS), total_steps=len(updates), tokens_per_update=128)
    way = way_of(tuning)
    for windows in updates:
        updating.optimizer.zero_grad()
        way.run(windows, 1.0 / count_targets(windows), Quiet())
        updating.gradients.apply(list(tuning.weights.values()), 0)
        updating.optimizer.step()
        updating.schedule.step()
    way.close()
    return tuning


def whole(tuning):
    return WholeSequenceStep(tuning.model, recompute=False, gradients=tuning.masters.gradients)


def streamed(folder, **plan):
    chosen = StreamPlan(tile=16, key_block=32, **plan)
    return lambda tuning: StreamedWindows(tuning, chosen, device=CPU, spill_directory=folder)


@pytest.mark.parametrize("family", ["qwen2", "llama", "phi"])
@pytest.mark.parametrize("way", ["whole", "resident", "streamed"])
def test_fp32_weights_become_those_of_plain_adamw(family, way, tmp_path):
    """`streamed` copies each layer in and out: a copy older than the last update would show."""
    expected = plain(tiny_model(family), UPDATES)
    way_of = whole if way == "whole" else streamed(tmp_path, weights="resident")
    if way == "streamed":
        way_of = streamed(tmp_path, weights="streamed", stash=False)
    found = tuned(tiny_model(family), way_of, UPDATES).weights
    assert found.keys() == expected.keys()
    for name, value in found.items():
        # What a key's unrotated half adds to every key changes no softmax: its gradient is noise to Adam.
        if not (family == "phi" and name.endswith("k_proj.bias")):
            torch.testing.assert_close(value.detach(), expected[name], rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("weights", [None, "resident", "streamed"])
def test_masters_of_16_bit_weights_follow_fp32_training(weights, tmp_path):
    """bf16 changes the direction a little, never by as much as rounding every update away would."""
    model = tiny_model().to(torch.bfloat16)
    expected = plain(copy.deepcopy(model).float(), UPDATES)
    before = {name: p.detach().float() for name, p in model.named_parameters()}
    tuning = tuned(model, whole if weights is None else streamed(tmp_path, weights=weights), UPDATES)
    moved = torch.cat([(tuning.weights[name].detach() - before[name]).flatten() for name in expected])
    wanted = torch.cat([(expected[name] - before[name]).flatten() for name in expected])
    assert torch.cosine_similarity(moved, wanted, dim=0) > 0.98
    assert 0.95 < (moved.norm() / wanted.norm()).item() < 1.05
    assert {p.dtype for p in tuning.weights.values()} == {torch.float32}
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, tuning.weights[name].to(torch.bfloat16)), name


def test_gradients_of_16_bit_weights_are_summed_in_fp32(tmp_path):
    """Hundreds of tiles: a bf16 sum would stop to grow at 256 equal parts."""
    model = tiny_model().to(torch.bfloat16)
    windows = patterned_windows([480])
    sums = {}
    for name, tile in (("fine", 2), ("coarse", 480)):
        tuning = FullTuning(copy.deepcopy(model), CPU)
        way = StreamedWindows(tuning, StreamPlan(tile=tile, key_block=512), device=CPU, spill_directory=tmp_path)
        way.run(windows, 1.0 / 479, Quiet())
        sums[name] = torch.cat([p.grad.flatten() for p in tuning.weights.values()])
    assert {gradient.dtype for gradient in sums.values()} == {torch.float32}
    assert torch.cosine_similarity(sums["fine"], sums["coarse"], dim=0) > 0.999


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repository")
    for name in ("queues.py", "locks.py", "timeouts.py"):
        (folder / name).write_text((ASYNCIO / name).read_text())
    return folder


def full(output, repository, **training):
    shared = {"method": "full", "context": 128, "tokens_per_update": 512, "learning_rate": 3e-4}
    return from_mapping(
        {
            "model": {"name": "demo", "device": "cpu"},
            "data": {"repositories": [str(repository)]},
            "training": {**shared, "evaluate_tokens": 2048, **training},
            "output": {"directory": str(output)},
        }
    )


def test_a_run_leaves_a_model_that_transformers_loads(repository, tmp_path):
    session = start(full(tmp_path, repository, max_steps=10))
    train(session)
    finished = session.events[-1]
    assert finished.adapter == "model"
    # The demo model knows such code, and ten updates of 512 tokens win little.
    assert finished.perplexity_after < 0.97 * finished.perplexity_before
    assert any("are trained, in fp32 on the host" in event.text for event in session.of(LogLine))
    model = AutoModelForCausalLM.from_pretrained(session.run.model_path)
    AutoTokenizer.from_pretrained(session.run.model_path)
    newest = max(session.run.checkpoints_path.iterdir())
    saved = read_snapshot(verify(newest))
    assert saved.weights_file == "model.safetensors"
    reloaded = AutoModelForCausalLM.from_pretrained(newest)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, saved.weights[name])
        assert torch.equal(reloaded.get_parameter(name), saved.weights[name])
    count = sum(parameter.numel() for parameter in model.parameters())
    assert f"all {count:,}" in session.run.report_path.read_text()


@pytest.mark.parametrize("step", ["whole", "streamed"])
def test_a_resumed_run_ends_as_the_uninterrupted_one(step, repository, tmp_path):
    # Two windows to an update, and little to score: three runs are only compared with one another.
    settings = {"max_steps": 4, "step": step, "ema_decay": 0.5, "tokens_per_update": 256, "evaluate_tokens": 128}
    one = start(full(tmp_path / "one", repository, **settings))
    train(one)
    two = start(full(tmp_path / "two", repository, **settings), script={2: [Stop(id="1")]})
    train(two)
    assert two.events[-1].status == "stopped"
    resumed = again(two)
    train(resumed)
    assert resumed.events[-1].status == "completed"
    found, expected = (AutoModelForCausalLM.from_pretrained(run.run.model_path) for run in (resumed, one))
    for name, parameter in expected.named_parameters():
        assert torch.equal(parameter, found.get_parameter(name)), name


def test_four_bit_weights_are_refused_in_one_line(tmp_path):
    config = from_mapping({"model": {"precision": "nf4"}, "training": {"method": "full", "context": 128}})
    with pytest.raises(EliteError, match="4 bits cannot be trained") as caught:
        choose_plan(config, take_inventory(tmp_path), find_model("demo"), None)
    assert caught.value.kind.code == "precision-unavailable"
