"""What a resumed run may change: nothing that its schedule was made from, in one clear line."""

from __future__ import annotations

import argparse
import json

import pytest

from engine import config as run_config
from engine.commands.train import add_arguments, resumed_config
from engine.errors import EliteError
from engine.runs.run_directory import RunDirectory


def resumed(tmp_path, schedule, *options):
    config = run_config.from_mapping({"output": {"directory": str(tmp_path)}})
    run = RunDirectory.create(config)
    run.plan_path.write_text(json.dumps({"context": 512, "precision": "fp32", "schedule": schedule}))
    parser = argparse.ArgumentParser()
    add_arguments(parser, "train")
    return resumed_config(run, parser.parse_args([*options, "--output", str(tmp_path)]))


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (("--epochs", "5"), "training.epochs"),
        (("--set", "training.epochs=0.5"), "training.epochs"),
        (("--hours", "2"), "training.hours"),
    ],
)
def test_what_a_schedule_was_made_from_cannot_change(tmp_path, options, field):
    with pytest.raises(EliteError) as caught:
        resumed(tmp_path, {"tokens_per_update": 512, "stages": []}, *options)
    assert caught.value.code == "resume-changes-config"
    assert field in str(caught.value)
    assert "schedule" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_may_stop_elsewhere(tmp_path):
    assert resumed(tmp_path, {"tokens_per_update": 512, "stages": []}, "--max-steps", "3").training.max_steps == 3


def test_windows_that_are_alike_may_be_passed_over_more_often(tmp_path):
    assert resumed(tmp_path, None, "--epochs", "5").training.epochs == 5


@pytest.mark.parametrize("share", [0.0, 0.25, None])
def test_a_file_without_a_share_of_fill_in_the_middle_keeps_that_of_the_run(tmp_path, share):
    run = RunDirectory.create(
        run_config.from_mapping({"output": {"directory": str(tmp_path)}, "data": {"fim": share}, "lora": {"rank": 4}})
    )
    file = tmp_path / "again.yaml"
    file.write_text("lora: {rank: 4}\n")
    parser = argparse.ArgumentParser()
    add_arguments(parser, "train")
    args = parser.parse_args(["--config", str(file), "--output", str(tmp_path), "--max-steps", "3"])
    assert resumed_config(run, args).data.fim == share
    with pytest.raises(EliteError) as caught:
        resumed_config(run, parser.parse_args(["--output", str(tmp_path), "--set", "data.fim=0.75"]))
    assert caught.value.code == "resume-changes-config"
    assert "data.fim" in str(caught.value)


def test_a_file_without_a_name_keeps_that_of_the_run(tmp_path):
    name = {"output": {"directory": str(tmp_path), "model_name": "shop"}}
    run = RunDirectory.create(run_config.from_mapping(name))
    file = tmp_path / "again.yaml"
    file.write_text("data: {repositories: [/home/me/game]}\n")
    parser = argparse.ArgumentParser()
    add_arguments(parser, "train")
    with pytest.raises(EliteError) as caught:
        resumed_config(run, parser.parse_args(["--config", str(file), "--output", str(tmp_path)]))
    assert "data.repositories" in str(caught.value)
    assert "model_name" not in str(caught.value)
    file.write_text("training: {max_steps: 3}\n")
    changed = resumed_config(run, parser.parse_args(["--config", str(file), "--output", str(tmp_path)]))
    assert (changed.output.model_name, changed.training.max_steps) == ("shop", 3)
