"""The probe: what it runs is a real tile, and what it finds corrects later plans."""

from __future__ import annotations

import dataclasses
import json

import pytest

from engine.cli import main
from engine.commands.probe import keeping_nothing
from engine.hardware.inventory import take_inventory
from engine.models.catalogue import find_model
from engine.plan.planner import plan_context
from engine.plan.request import PlanRequest, without_gpu
from tests.plan.machines import with_card


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


CONTEXT = 2100
"""Three tiles of the demo model's plan: the first is not the last."""


def _planned(way):
    machine = without_gpu(take_inventory("."))
    return plan_context(PlanRequest.of(machine, find_model("demo")).stepping(way), CONTEXT)


@pytest.mark.parametrize("way", ["streamed", "whole"])
def test_a_probe_measures_and_corrects(way, capsys, tmp_path):
    before = _planned(way)
    arguments = ["probe", "--model", "demo", "--context", str(CONTEXT), "--device", "cpu", "--step", way]
    assert main([*arguments, "--output", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["gpu_allocated"]["measured"] is None
    seconds = found["window_seconds"]
    assert seconds["measured"] > 0
    after = _planned(way)
    assert sum(part.seconds for part in after.time) == pytest.approx(seconds["measured"], rel=1e-6)
    assert sum(part.seconds for part in before.time) == pytest.approx(seconds["predicted"], rel=1e-6)
    other = "whole" if way == "streamed" else "streamed"
    assert "correction by a probe" not in {part.name for part in _planned(other).time}


def test_a_probe_computes_layers_again_only_where_the_plan_does(capsys, tmp_path, monkeypatch):
    """Where activations fit, a whole window keeps them: a probe that did not would find a third more time."""
    from engine.benchmarking import probe

    asked = []
    run = probe.probe_window

    def recording(*args, **options):
        asked.append(options["recompute"])
        return run(*args, **options)

    monkeypatch.setattr(probe, "probe_window", recording)
    arguments = ["probe", "--model", "demo", "--context", "500", "--device", "cpu", "--step", "whole", "--json"]
    assert main([*arguments, "--output", str(tmp_path)]) == 0
    assert asked == [json.loads(capsys.readouterr().out)["plan"]["checkpointing"]]


def test_a_plan_that_keeps_layers_is_probed_without():
    """What runs computes its layer again, so what it is held against must too."""
    machine = with_card("rtx-4090")
    spec = find_model("qwen2.5-coder-1.5b")
    planning = PlanRequest.of(machine, spec, "nf4")
    row = plan_context(planning, 8192)
    assert row.layout.stream.keep_layers > 0
    probed = keeping_nothing(planning, row)
    assert probed.layout.stream == dataclasses.replace(row.layout.stream, keep_layers=0)
    assert probed.layout.as_json()["keep_layers"] == 0
    assert sum(part.seconds for part in probed.time) > 1.1 * sum(part.seconds for part in row.time)
    assert keeping_nothing(planning, probed) == probed


@pytest.mark.parametrize("tile", [100, 1000])
def test_the_last_tile_may_be_the_first(tile, capsys, tmp_path):
    arguments = ["probe", "--model", "demo", "--context", "500", "--device", "cpu", "--output", str(tmp_path), "--json"]
    assert main([*arguments, "--stream", f"tile={tile}"]) == 0
    assert json.loads(capsys.readouterr().out)["window_seconds"]["measured"] > 0


def test_a_probe_runs_the_layout_that_it_was_asked_for(capsys, tmp_path):
    arguments = ["probe", "--model", "demo", "--context", "500", "--device", "cpu", "--output", str(tmp_path), "--json"]
    assert main([*arguments, "--stream", "tile=100", "--stream", "stash=false"]) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert (plan["tile"], plan["stash"]) == (100, False)
    assert main([*arguments, "--step", "whole", "--stream", "tile=100"]) == 2
    assert "stream.tile" in capsys.readouterr().err


def test_what_does_not_fit_is_not_run(capsys):
    status = main(["probe", "--model", "qwen2.5-coder-14b", "--tier", "11", "--device", "cpu", "--json"])
    assert status == 3
    assert json.loads(capsys.readouterr().out)["error"] == "context-does-not-fit"
