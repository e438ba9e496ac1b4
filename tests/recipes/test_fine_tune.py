"""The whole recipe in this process: real repositories in, adapter and report out; resuming; stopping; failures."""

from __future__ import annotations

import asyncio
import email
import json
import os
import shutil
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace
from peft import PeftModel
from support.session import RecordingSession
from transformers import Qwen2Config, Qwen2ForCausalLM

from engine.assets import asset
from engine.cli import main
from engine.config import from_mapping, load
from engine.errors import EliteError
from engine.models.adapter import attach_adapter
from engine.models.catalogue import find_model
from engine.models.loading import load_model
from engine.models.placement import choose_placement
from engine.plan.choice import choose_plan
from engine.protocol.commands import Stop
from engine.protocol.events import (
    PHASES,
    CheckpointSaved,
    EvalCompleted,
    LogLine,
    PhaseChanged,
    RecoveryTaken,
    RunFinished,
    RunStarted,
    StepCompleted,
    StepProgress,
    WarningRaised,
)
from engine.recipes.fine_tune import train
from engine.runs.run_directory import RunDirectory
from engine.steps.failures import memory_errors

ASYNCIO = Path(asyncio.__file__).parent
EMAIL = Path(email.__file__).parent


def configure(output, repositories, **training):
    return from_mapping(
        {
            "model": {"name": "demo", "device": "cpu"},
            "data": {"repositories": [str(path) for path in repositories]},
            "lora": {"rank": 8},
            "training": {
                "context": 256,
                "tokens_per_update": 1024,
                "learning_rate": 2e-3,
                "evaluate_tokens": 4096,
                **training,
            },
            "checkpoint": {"keep": 10},
            "output": {"directory": str(output)},
        }
    )


def start(config, script=None):
    return RecordingSession(config=config, run=RunDirectory.create(config), script=script or {})


def again(session, script=None):
    return RecordingSession(config=session.config, run=session.run, resuming=True, script=script or {})


SHORT = {"context": 128, "tokens_per_update": 256, "evaluate_tokens": 512}
"""For runs that are only compared with one another: two windows to an update, and little to score."""


@pytest.fixture(scope="module")
def small_repository(tmp_path_factory):
    """Four files of the standard library: a run over them takes seconds."""
    folder = tmp_path_factory.mktemp("repository")
    for name in ("queues.py", "locks.py", "runners.py", "timeouts.py"):
        (folder / name).write_text((ASYNCIO / name).read_text())
    return folder


def save_untrained(folder, **shape):
    """Saves a Qwen2 with random weights, whose embeddings are wide enough for its tied head's logits to reach far."""
    config = Qwen2Config(vocab_size=8192, tie_word_embeddings=True, **shape)
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config)
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=config.hidden_size**-0.5)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(asset("demo-model", name), folder / name)
    return folder


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """A small model that has everything to learn."""
    return save_untrained(
        tmp_path_factory.mktemp("untrained"),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
    )


packages = pytest.mark.parametrize(
    "package", [pytest.param(ASYNCIO, id="asyncio"), pytest.param(EMAIL, id="email", marks=pytest.mark.slow)]
)


@packages
def test_a_model_that_has_everything_to_learn_learns_much(package, untrained, tmp_path):
    config = configure(tmp_path, [package], max_steps=24)
    session = start(replace(config, model=replace(config.model, name=str(untrained))))
    train(session)
    finished = session.events[-1]
    assert isinstance(finished, RunFinished)
    assert finished.perplexity_after < 0.75 * finished.perplexity_before


@packages
def test_training_lowers_held_out_perplexity(package, tmp_path):
    session = start(configure(tmp_path, [package], max_steps=24, learning_rate=5e-3))
    train(session)

    finished = session.events[-1]
    assert isinstance(finished, RunFinished)
    assert finished.status == "completed"
    # The demo model has learnt the whole standard library, so that little is left to win: 0.945 times on asyncio and
    # 0.929 on email were measured. A step that does not reach the model stays at 1, a wrong one goes up.
    assert finished.perplexity_after < 0.97 * finished.perplexity_before
    scored = session.of(EvalCompleted)
    assert [event.step for event in scored] == [0, 24]
    assert scored[0].tokens == scored[1].tokens > 1000
    assert [phase for phase, _ in groupby(event.phase for event in session.of(PhaseChanged))] == list(PHASES)
    assert session.of(RunStarted)[0].total_steps == 24

    base = load_model(find_model("demo"), choose_placement("cpu", "fp32"))
    ids = torch.arange(64)[None]
    with torch.no_grad():
        before = base(input_ids=ids).logits
    model = PeftModel.from_pretrained(base, session.run.path / finished.adapter).eval()
    with torch.no_grad():
        assert not torch.allclose(model(input_ids=ids).logits, before)
    assert model.generate(input_ids=ids, max_new_tokens=4).shape == (1, 68)


def test_report_and_adapter_work_as_the_report_says(small_repository, tmp_path):
    session = start(configure(tmp_path, [small_repository], max_steps=2))
    train(session)
    report = session.run.report_path.read_text()
    finished = session.events[-1]
    assert f"{finished.perplexity_before:,.2f}" in report
    assert f"{finished.perplexity_after:,.2f}" in report
    code = report.partition("```python\n")[2].partition("```")[0]
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=session.run.path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("def main(")


def test_resuming_gives_the_uninterrupted_run_even_from_an_older_checkpoint(small_repository, tmp_path):
    """Stopped twice; the newest checkpoint is damaged; the run goes on from the one before, to the same end."""
    whole = start(configure(tmp_path / "whole", [small_repository], max_steps=6, **SHORT))
    train(whole)

    first = start(configure(tmp_path / "cut", [small_repository], max_steps=6, **SHORT), {2: [Stop(id="1")]})
    train(first)
    assert first.events[-1].status == "stopped"
    assert (first.run.path / first.events[-1].adapter / "adapter_model.safetensors").exists()
    second = again(first, {4: [Stop(id="2")]})
    train(second)
    newest = first.run.path / second.of(CheckpointSaved)[-1].path
    with (newest / "optimizer.safetensors").open("r+b") as file:
        file.truncate(1000)

    third = again(first)
    train(third)
    (warning,) = third.of(WarningRaised)
    assert warning.code == "checkpoint-damaged"
    assert "optimizer.safetensors" in warning.text
    assert "step-000002" in third.of(RecoveryTaken)[0].what
    assert third.of(RunStarted)[0].first_step == 2
    assert [event.step for event in third.of(StepCompleted)] == [3, 4, 5, 6]
    assert [event.step for event in third.of(EvalCompleted)] == [6]  # the base model is not scored again
    expected = {event.step: event.loss for event in whole.of(StepCompleted)}
    assert {event.step: event.loss for event in third.of(StepCompleted)}.items() <= expected.items()
    assert third.events[-1].perplexity_before == whole.events[-1].perplexity_before
    assert third.events[-1].perplexity_after == whole.events[-1].perplexity_after


def test_a_resumed_run_keeps_the_context_that_its_first_plan_chose(small_repository, tmp_path, monkeypatch):
    config = configure(tmp_path, [small_repository], context=None, tokens_per_update=512, max_steps=2)
    first = start(config, {1: [Stop(id="1")]})
    train(first)
    asked = []

    def choose(config, *arguments, **named):
        """A machine may plan otherwise tomorrow: with other free memory, another load, more files."""
        asked.append(list(config.training.stages))
        return choose_plan(config, *arguments, **named)

    monkeypatch.setattr("engine.recipes.setup.choose_plan", choose)
    second = again(first)
    train(second)
    schedule = json.loads(first.run.plan_path.read_text())["schedule"]
    stages = [f"{stage['context']}:{stage['updates']}" for stage in schedule["stages"]]
    assert asked == [stages]
    assert second.of(RunStarted)[0].context == first.of(RunStarted)[0].context
    fresh = start(configure(tmp_path / "fresh", [small_repository], context=None, max_steps=1), {0: [Stop(id="1")]})
    train(fresh)
    assert asked == [stages, []]


def test_resuming_without_a_valid_checkpoint_is_one_clear_error(small_repository, tmp_path):
    session = start(configure(tmp_path, [small_repository], max_steps=2, **SHORT), {1: [Stop(id="1")]})
    train(session)
    (session.run.checkpoints_path / "step-000001" / "state.json").write_bytes(b"{}")
    with pytest.raises(EliteError) as caught:
        train(again(session))
    assert caught.value.code == "nothing-to-resume"


def test_a_run_that_ended_before_its_first_checkpoint_starts_from_its_beginning(small_repository, tmp_path):
    whole = start(configure(tmp_path / "whole", [small_repository], max_steps=2, **SHORT))
    train(whole)
    first = start(
        configure(tmp_path / "cut", [small_repository], max_steps=2, **SHORT), {1: [Stop(id="1", save=False)]}
    )
    train(first)
    second = again(first)
    train(second)
    assert [e.loss for e in second.of(StepCompleted)] == [e.loss for e in whole.of(StepCompleted)]


def test_more_updates_than_an_epoch_has_are_neither_announced_nor_counted_in_the_time(small_repository, tmp_path):
    short = SHORT | {"context": 2048, "tokens_per_update": 4096}
    first = start(configure(tmp_path, [small_repository], max_steps=500, **short), {1: [Stop(id="1")]})
    train(first)
    taken = first.of(StepCompleted)[0].total_steps
    assert taken < 20
    assert first.of(RunStarted)[0].total_steps == 0  # not known yet
    second = again(first, {2: [Stop(id="2", save=False)]})
    train(second)
    assert second.of(RunStarted)[0].total_steps == taken
    assert not [line.text for line in second.of(LogLine) if "in all" in line.text]


def test_a_repository_that_changed_meanwhile_is_told(small_repository, tmp_path):
    repository = tmp_path / "repository"
    repository.mkdir()
    for file in small_repository.iterdir():
        (repository / file.name).write_text(file.read_text())
    first = start(configure(tmp_path / "out", [repository], max_steps=2, **SHORT), {1: [Stop(id="1")]})
    train(first)
    (repository / "more.py").write_text("def more():\n    return [index * 3 for index in range(100)]\n" * 60)
    second = again(first)
    train(second)
    assert [warning.code for warning in second.of(WarningRaised)] == ["data-changed"]
    assert second.events[-1].status == "completed"


@pytest.mark.parametrize(("repeats", "warned"), [(1, ["held-out-small"]), (40, [])])
def test_a_held_out_part_that_is_too_small_to_measure_with_is_warned_about_once(tmp_path, repeats, warned):
    repository = tmp_path / "repository"
    repository.mkdir()
    for name in ("a", "b", "c"):
        lines = [f"def {name}_{number}(value):\n    return value * {number} + {number + 1}\n" for number in range(4)]
        (repository / f"{name}.py").write_text("\n".join(lines * repeats))
    session = start(configure(tmp_path / "out", [repository], max_steps=1, **SHORT))
    train(session)
    assert [warning.code for warning in session.of(WarningRaised)] == warned
    told = " ".join(warning.text + warning.hint for warning in session.of(WarningRaised))
    assert ("data.held_out_fraction" in told) is bool(warned)


def test_the_demo_recipe_needs_neither_network_nor_gpu_and_is_bounded():
    config = load(Path(__file__).parents[2] / "recipes" / "demo.yaml")
    assert (config.model.name, config.model.device) == ("demo", "cpu")
    assert config.training.max_steps * config.training.tokens_per_update < 300_000
    attach_adapter(load_model(find_model("demo"), choose_placement("cpu", "fp32")), config.lora, seed=0)


def test_a_stop_before_the_first_step_ends_at_once(small_repository, tmp_path):
    session = start(configure(tmp_path, [small_repository], max_steps=2, **SHORT), {0: [Stop(id="now")]})
    train(session)
    assert session.events[-1].status == "stopped"
    assert not session.of(StepCompleted)
    assert not session.run.adapter_path.exists()


def test_running_out_of_memory_is_one_clear_error():
    with pytest.raises(EliteError) as caught, memory_errors("training", "one window", "use less"):
        torch.empty(2**55)
    assert caught.value.code == "out-of-memory"
    assert "host" in caught.value.message


@pytest.mark.parametrize("precision", ["fp32", pytest.param("nf4", marks=pytest.mark.slow)])
def test_the_streamed_step_trains_as_whole_windows_do(small_repository, tmp_path, precision):
    losses = {}
    for way in ("whole", "streamed"):
        config = configure(
            tmp_path / way, [small_repository], context=1024, max_steps=2, evaluate_tokens=1024, step=way
        )
        config = replace(config, model=replace(config.model, precision=precision))
        session = start(config)
        train(session)
        steps = [event for event in session.events if isinstance(event, StepCompleted)]
        scores = [event.loss for event in session.events if isinstance(event, EvalCompleted)]
        losses[way] = [step.loss for step in steps] + scores
        stages = {event.stage for event in session.events if isinstance(event, StepProgress)}
        assert ("backward" in stages) == (way == "streamed")
        plan = json.loads(session.run.plan_path.read_text())["plan"]
        assert (plan["order"] == "layer-major") == (way == "streamed")
    assert losses["streamed"] == pytest.approx(losses["whole"], rel=1e-3)


@pytest.mark.slow
def test_four_bit_weights_on_the_host_train_resume_and_write(small_repository, tmp_path, capsys):
    """The same losses as with resident ones, over a stop and a resumption; the result serves as any other."""

    def session_of(weights):
        config = configure(tmp_path / weights, [small_repository], max_steps=2, evaluate_tokens=512)
        stream = {"weights": weights, "tile": 64, "key_block": 128, "stash": True, "checkpoint_every": 1}
        model = replace(config.model, precision="nf4")
        return start(replace(config, model=model, stream=replace(config.stream, **stream)), {1: [Stop(id="1")]})

    losses = {}
    for weights in ("resident", "streamed"):
        first = session_of(weights)
        train(first)
        second = again(first)
        train(second)
        assert second.events[-1].status == "completed"
        assert json.loads(second.run.plan_path.read_text())["plan"]["weights"].startswith("nf4")
        parts = (StepCompleted, EvalCompleted)
        losses[weights] = [e.loss for session in (first, second) for e in session.events if isinstance(e, parts)]
    assert len(losses["streamed"]) > 2
    assert losses["streamed"] == losses["resident"]
    arguments = ["generate", str(second.run.path), "--prompt", "def main(", "--max-tokens", "2", "--json"]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["tuned"]["tokens"] == 2


def test_a_context_past_the_trained_length_is_said(small_repository, tmp_path):
    model = save_untrained(
        tmp_path / "model",
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=100,
    )
    config = configure(tmp_path, [small_repository], context=500, max_steps=1, evaluate_tokens=64)
    session = start(replace(config, model=replace(config.model, name=str(model))))
    train(session)
    assert "context-past-trained-length" in [event.code for event in session.of(WarningRaised)]
