"""DPO by `engine train`: killed and resumed with the same losses, streamed or whole; and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from support.session import RecordingSession
from transformers import Qwen2Config, Qwen2ForCausalLM

from engine.assets import asset
from engine.config import from_mapping, to_yaml
from engine.errors import EliteError
from engine.protocol.events import EvalCompleted, LogLine, RunFinished, StepCompleted
from engine.recipes.fine_tune import train
from engine.recipes.preference import refuse_combinations, refuse_dropout
from engine.runs.run_directory import RunDirectory
from engine.runs.run_index import STATE_VARIABLE


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A Qwen2 of two narrow layers with the demo model's tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    Qwen2ForCausalLM(Qwen2Config(vocab_size=8192, num_key_value_heads=2, **shape)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(asset("demo-model", name), folder / name)
    return folder


@pytest.fixture
def settings(model, tmp_path):
    """Two epochs of updates of one pair, in tiles."""
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": f"Is {number} even?", "chosen": f"It is {number % 2 == 0}.", "rejected": "Who knows, not I! " * 3}
        for number in range(12)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model": {"name": str(model), "device": "cpu", "precision": "fp32"},
        "data": {"datasets": [str(path)], "chat_template": "plain", "held_out_fraction": 0.2},
        "lora": {"rank": 4},
        "training": {
            "objective": "dpo",
            "dpo_beta": 0.5,
            "context": 64,
            "tokens_per_update": 64,
            "epochs": 2.0,
            "learning_rate": 0.02,
            "evaluate_every": 2,
            "step": "streamed",
        },
        "stream": {"tile": 16},
        "evaluation": {"at_end": False},
        "output": {"directory": str(tmp_path / "out")},
    }


def run_engine(arguments, state, *, kill=False):
    """Events of `engine train`; `kill` ends its training process with SIGKILL when a checkpoint is complete."""
    command = [sys.executable, "-m", "engine", "train", "--json", *map(str, arguments)]
    environment = {**os.environ, STATE_VARIABLE: str(state), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    events, trainer = [], None
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        for line in process.stdout:
            event = json.loads(line)
            events.append(event)
            trainer = event.get("pid", trainer)
            if kill and event.get("kind") == "CheckpointSaved":
                os.kill(trainer, signal.SIGKILL)
                kill = False
    return events


def losses(events):
    return {event["step"]: event["loss"] for event in events if event.get("kind") == "StepCompleted"}


def test_a_killed_run_resumes_with_the_same_losses(settings, tmp_path):
    session = RecordingSession(config=from_mapping(settings), run=RunDirectory.create(from_mapping(settings)))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train(session)
    finally:
        torch.set_num_threads(threads)
    steps = session.of(StepCompleted)
    assert len(steps) > 12
    assert steps[0].reward_margin == 0
    assert steps[0].loss == pytest.approx(0.6931, abs=1e-4)
    assert steps[-1].reward_margin > 0
    scored = session.of(EvalCompleted)
    assert scored[0].preference_loss == pytest.approx(0.6931, abs=1e-4)
    assert scored[-1].preference_loss < scored[0].preference_loss
    assert scored[-1].reward_accuracy > 0.5
    assert isinstance(session.events[-1], RunFinished)
    assert "## Held-out preferences" in session.run.report_path.read_text()

    settings["output"]["directory"] = str(tmp_path / "killed")
    config = tmp_path / "config.yaml"
    config.write_text(to_yaml(from_mapping(settings)))
    killed = run_engine(["--config", config], tmp_path / "state", kill=True)
    run = killed[0]["run"]
    resumed = run_engine(["--resume", run], tmp_path / "state")
    expected = {step.step: step.loss for step in steps}
    found = {**losses(killed), **losses(resumed)}
    assert found == expected
    assert max(losses(killed)) < len(steps), "it was killed before its end"
    assert min(losses(resumed)) > 1, "it went on from a checkpoint"
    assert any(event.get("text", "").startswith("reference: 0 of") for event in resumed)


REFUSED = {
    "data.repositories": {"data": {"repositories": ["."]}},
    "lora.dropout": {"lora": {"dropout": 0.1}},
    "training.neftune_alpha": {"training": {"neftune_alpha": 5.0}},
    "training.label_smoothing": {"training": {"label_smoothing": 0.1}},
    "training.curriculum": {"training": {"curriculum": True}},
    "training.shifted_attention": {"training": {"shifted_attention": True}},
    "training.stages": {"training": {"context": None, "stages": ["64:2", "128:2"], "epochs": None}},
    "training.hours": {"training": {"context": None, "hours": 2.0, "epochs": None}},
    "data.overlong": {"data": {"overlong": "split"}},
    "data.datasets": {"data": {"datasets": []}},
    "distributed.strategy": {"distributed": {"strategy": "ring"}},
}


@pytest.mark.parametrize("field", REFUSED)
def test_what_dpo_excludes_is_refused_by_name(settings, field):
    for section, values in REFUSED[field].items():
        settings[section] = {**settings.get(section, {}), **values}
    with pytest.raises(EliteError, match=r"training\.objective=dpo") as caught:
        refuse_combinations(from_mapping(settings), ranks=1)
    assert field in str(caught.value)
    assert "\n" not in str(caught.value)
    settings["training"]["objective"] = "sft"
    refuse_combinations(from_mapping(settings), ranks=8)


def test_several_processes_and_a_model_with_dropout_are_refused(settings):
    with pytest.raises(EliteError, match=r"distributed\.gpus.*in one process, not in 2"):
        refuse_combinations(from_mapping(settings), ranks=2)
    config = Qwen2Config(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, attention_dropout=0.2
    )
    config.num_attention_heads = config.num_key_value_heads = 2
    with pytest.raises(EliteError, match=r"dropout of 0\.2"):
        refuse_dropout(Qwen2ForCausalLM(config))
    config.attention_dropout = 0.0
    refuse_dropout(Qwen2ForCausalLM(config))


def test_a_stop_while_the_reference_is_scored_keeps_what_was_scored(settings, monkeypatch):
    monkeypatch.setattr("engine.recipes.fine_tune.PROGRESS_SECONDS", 0.0)  # every pair is told
    config = from_mapping(settings)
    session = RecordingSession(config=config, run=RunDirectory.create(config))

    def emit(event):
        session.events.append(event)
        if getattr(event, "stage", "") == "pairs" and event.done == 2:
            session.commands.interrupted = True

    session.emit = emit
    train(session)
    assert session.events[-1].status == "stopped"
    kept = (session.run.path / "reference.jsonl").read_text().splitlines()
    assert 0 < len(kept) < 12
    assert not session.of(LogLine) or not any("reference:" in line.text for line in session.of(LogLine))
