"""Measuring a machine: a real child, what is kept of it, and what a plan makes of it."""

from __future__ import annotations

import dataclasses
import json

import pytest

from engine.cli import main
from engine.errors import EliteError
from engine.hardware import measured_files
from engine.hardware.inventory import take_inventory
from engine.hardware.measured import AttentionRate, Measured
from engine.hardware.profiling import profile_machine
from engine.models.catalogue import find_model
from engine.plan.planner import plan_tiers
from engine.plan.speeds import speeds_of
from engine.plan.workload import Workload
from tests.plan.machines import with_card, without_card


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_command_measures_keeps_and_shows(capsys, tmp_path):
    """One real measurement of the processor, RAM and disk here, and its use by the next inventory."""
    assert main(["profile", "--json", "--output", str(tmp_path / "not yet there")]) == 0
    found = json.loads(capsys.readouterr().out)["measured"]
    assert found["matrix"]["fp32"] > 1e8
    assert {rate["head_dim"] for rate in found["attention"]} == {64, 128}
    assert all(found[name] > 0 for name in ("launch", "ram_write", "ram_copy", "disk_write", "disk_read"))
    machine = take_inventory(tmp_path)
    assert machine.measured is not None
    assert machine.measured.matrix["fp32"] == found["matrix"]["fp32"]
    assert main(["profile", "--quick"]) == 0
    assert "matrices, fp32" in capsys.readouterr().out


def test_a_child_that_takes_too_long_is_ended_and_told_of(tmp_path):
    with pytest.raises(EliteError) as caught:
        profile_machine(without_card(), tmp_path, time_limit=0.05)
    assert caught.value.code == "profile-failed"


def test_figures_of_another_machine_or_version_are_not_used():
    here, there = without_card(cores=4), without_card(cores=8)
    figures = Measured(time=1.0, torch="2", matrix={"fp32": 1e12})
    path = measured_files.store(here, figures)
    assert measured_files.load(here) == figures
    assert measured_files.load(there) is None
    measured_files.store(here, dataclasses.replace(figures, version=0))
    assert measured_files.load(here) is None
    path.write_text('{"time": "yesterday"')
    assert measured_files.load(here) is None


def _work(machine, model="qwen2.5-coder-1.5b"):
    return Workload(spec=find_model(model), context=4096, compute_type="bf16", lora_parameters=1)


def test_measured_rates_take_the_place_of_the_data_sheet():
    machine = with_card("rtx-4090")
    figures = Measured(
        time=1.0,
        torch="2",
        matrix={"bf16": 150e12},
        narrow_matrix={"bf16": 100e12},
        attention=(
            AttentionRate(backend="flash", head_dim=64, forward=60e12, backward=50e12),
            AttentionRate(backend="flash", head_dim=128, forward=90e12, backward=70e12),
            AttentionRate(backend="cudnn", head_dim=128, forward=110e12, backward=90e12),
        ),
        to_device=25e9,
        to_host=20e9,
    )
    measured = dataclasses.replace(machine, measured=figures)
    speeds = speeds_of(measured, _work(measured))
    assert (speeds.attention_forward, speeds.attention_backward) == (110e12, 90e12)
    assert speeds.link == 20e9
    assert 100e12 < speeds.matrix < 150e12  # 1,536 lies between the two widths
    assert speeds.disk == speeds_of(machine, _work(machine)).disk  # was not measured
    slow = dataclasses.replace(
        figures, attention=tuple(dataclasses.replace(a, forward=1e12) for a in figures.attention)
    )
    before, after = (
        plan_tiers(dataclasses.replace(machine, measured=m), find_model("qwen2.5-coder-1.5b")).row(8)
        for m in (figures, slow)
    )
    assert after.step_seconds > before.step_seconds


def test_a_busy_machine_is_told_of(monkeypatch, capsys, tmp_path):
    """Figures of a busy processor are too low, and plans made from them too slow."""
    machine = take_inventory(tmp_path)
    for busy in (0.05, 0.6):
        measured_files.store(machine, Measured(time=1.0, torch="2", others_busy=busy, matrix={"fp32": 1e12}))
        assert main(["profile", "--quick"]) == 0
        assert ("60% of the CPU was busy" in capsys.readouterr().out) == (busy > 0.5)
        assert main(["plan", "--tier", "1"]) == 0
        assert ("60% of the CPU was busy" in " ".join(capsys.readouterr().out.split())) == (busy > 0.5)


def test_a_product_that_seems_slower_for_being_wide_was_disturbed(tmp_path):
    """Something else ran while the wide product was measured: the narrow one's rate is a better bound."""
    spec = find_model("qwen2.5-coder-1.5b")
    machine = take_inventory(tmp_path)
    found = [
        plan_tiers(
            dataclasses.replace(
                machine,
                gpus=(),
                measured=Measured(time=1.0, torch="2", matrix={"fp32": wide}, narrow_matrix={"fp32": 1e11}),
            ),
            spec,
        )
        .row(1)
        .step_seconds
        for wide in (3e9, 1e11)
    ]
    assert found[0] == found[1]
