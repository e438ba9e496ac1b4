"""engine optimizations, verify, ablate and lr-range, as people call them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine.cli import main
from engine.commands.ablate import summarise
from engine.evaluation.ablation import Outcome, tokens_to_reach
from engine.plan.optimizations import optimizations

ROOT = Path(__file__).parents[2]


def engine(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "engine", *map(str, arguments)], capture_output=True, text=True, cwd=ROOT, check=False
    )


@pytest.fixture
def repository(tmp_path):
    folder = tmp_path / "repository"
    folder.mkdir()
    for name in "abcdefghijkl":
        (folder / f"{name}.py").write_text("".join(f"def {name}_{i}(x):\n    return x + {i}\n" for i in range(60)))
    return folder


@pytest.fixture
def small(repository, tmp_path):
    """Options of runs of four small steps."""
    fields = ("context=64", "tokens_per_update=128", "max_steps=4", "evaluate_tokens=256")
    options = [part for field in fields for part in ("--set", f"training.{field}")]
    return ["--repo", repository, "--output", tmp_path / "out", *options]


def test_optimizations_as_json(capsys):
    assert main(["optimizations", "--hardware", "rtx-3060-12gb", "--model", "qwen2.5-coder-1.5b", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["id"] for row in rows] == [row.id for row in optimizations()]
    assert {row["state"] for row in rows} == {"on", "off", "unavailable"}
    assert all(row["reason"] for row in rows)


def test_optimizations_for_people(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["optimizations", "--set", "training.ema_decay=0.9"]) == 0
    text = capsys.readouterr().out
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "one average is kept (ema is on)" in " ".join(text.split())


def test_verify_prints_one_document_and_its_progress_elsewhere():
    done = engine("verify", "rslora", "memory_tuning", "--device", "cpu", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [(v["id"], v["status"]) for v in found] == [("rslora", "passed"), ("memory_tuning", "unavailable")]
    assert found[0]["evidence"]
    assert found[1]["reason"]
    assert "1 passed, 0 failed, 1 unavailable" in done.stderr


def test_verify_of_an_unknown_name_is_one_line(capsys):
    assert main(["verify", "rs-lora"]) == 2
    assert "did you mean rslora?" in capsys.readouterr().err


@pytest.mark.slow
def test_ablate_measures_real_runs(small):
    done = engine("ablate", "ema", "gqa", *small, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [row["id"] for row in found["rows"]] == ["baseline", "ema"]  # the demo model has grouped heads already
    for row in found["rows"]:
        assert row["tokens_per_second"] > 0
        assert row["host_peak"] > 0
        assert 0 < row["held_out_loss"] < 20
    assert found["rows"][1]["loss_difference"] != 0
    assert found["runs"][0]["tokens"] == found["runs"][1]["tokens"] > 0
    assert len(found["runs"][0]["curve"]) == 5


def test_ablate_names_its_runs(small):
    done = engine("ablate", "lora_plus", "rslora", *small, "--seeds", "2", "--list")
    assert done.stdout.split("\n")[:6] == [
        "baseline on, seed 0",
        "lora_plus on, seed 0",
        "rslora on, seed 0",
        "baseline on, seed 1",
        "lora_plus on, seed 1",
        "rslora on, seed 1",
    ]


@pytest.mark.slow
def test_lr_range_suggests_a_rate(small):
    options = [part if part != "training.max_steps=4" else "training.max_steps=12" for part in small]
    done = engine("lr-range", *options, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert 0 < found["suggested"] < 1
    assert len(found["rates"]) == len(found["losses"]) == len(found["smoothed"])
    assert found["rates"] == sorted(found["rates"])


def outcome(name, seed, loss, curve, **more):
    return Outcome(id=name, on=True, seed=seed, held_out_loss=loss, curve=curve, tokens=curve[-1][0], **more)


def test_a_summary_compares_runs_of_one_seed():
    rows = summarise(
        [
            outcome("baseline", 0, 2.0, ((0, 5.0), (100, 3.0), (200, 2.0)), tokens_per_second=10.0),
            outcome("a", 0, 1.5, ((0, 5.0), (100, 2.0), (200, 1.5)), tokens_per_second=20.0),
            outcome("baseline", 1, 2.2, ((0, 5.0), (200, 2.2)), tokens_per_second=10.0),
            outcome("a", 1, 2.4, ((0, 5.0), (200, 2.4)), tokens_per_second=22.0),
        ]
    )
    assert [row["id"] for row in rows] == ["baseline", "a"]
    assert rows[1]["loss_difference"] == pytest.approx((-0.5 + 0.2) / 2)
    assert rows[1]["tokens_to_baseline"] == pytest.approx(0.5)
    assert (rows[1]["reached"], rows[1]["seeds"]) == (1, 2)
    assert rows[1]["tokens_per_second"] == 21.0


@pytest.mark.parametrize(
    ("curve", "loss", "tokens"),
    [
        (((0, 5.0), (100, 3.0)), 4.0, 50.0),
        (((0, 5.0), (100, 3.0)), 2.0, None),
        (((0, 5.0), (100, 5.0), (200, 4.0)), 5.0, 100.0),
        ((), 1.0, None),
    ],
)
def test_tokens_to_a_loss(curve, loss, tokens):
    assert tokens_to_reach(curve, loss) == tokens


def test_what_was_proven_before_an_interruption_is_printed(capfd, monkeypatch):
    from engine.verify import runner

    proven = runner.prove

    def prove(row, device):
        if row.id == "ema":
            raise KeyboardInterrupt
        return proven(row, device)

    monkeypatch.setattr(runner, "prove", prove)
    assert main(["verify", "label_smoothing", "ema", "--device", "cpu", "--json"]) == 130
    (verdict,) = json.loads(capfd.readouterr().out)
    assert (verdict["id"], verdict["status"]) == ("label_smoothing", "passed")


@pytest.mark.skipif(torch.cuda.is_available(), reason="has the device that is asked for")
def test_verify_that_cannot_begin_prints_its_error_as_the_one_document(capfd):
    assert main(["verify", "--device", "cuda", "--json"]) != 0
    assert json.loads(capfd.readouterr().out)["error"] == "device-unavailable"
