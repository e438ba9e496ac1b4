"""Pre-flight: each finding is a row, whatever is wrong, and the exit code says whether a run could start."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine.assets import asset
from engine.cli import main
from engine.config import from_mapping
from engine.hardware.inventory import take_inventory
from engine.hardware.machine import Gpu
from engine.launch import doctor, doctor_probe
from engine.launch.doctor import NAMES, examine
from engine.models.base_changes import BaseChanges
from engine.models.catalogue import find_model
from engine.runs.run_index import STATE_VARIABLE
from engine.runs.versions import library_checks

HERE = Path(__file__).parent


def configure(tmp_path, **sections):
    values = {
        "data": {"repositories": [str(HERE)]},
        "output": {"directory": str(tmp_path / "out")},
        "training": {"context": 128},
    }
    for section, fields in sections.items():
        values[section] = {**values.get(section, {}), **fields}
    return from_mapping(values)


def by_name(rows):
    return {row.name: row for row in rows}


def test_every_row_is_there_in_order_and_a_usable_machine_passes(tmp_path):
    rows = list(examine(configure(tmp_path)))
    assert tuple(row.name for row in rows) == NAMES
    assert [row for row in rows if row.status == "failed"] == []
    assert not (tmp_path / "out").exists()


def test_rows_say_what_is_wrong_and_what_to_do(tmp_path):
    config = configure(
        tmp_path,
        data={"repositories": [str(tmp_path / "missing")]},
        model={"name": "nope"},
        output={"directory": "/proc/runs"},
    )
    rows = by_name(examine(config, probe=False))
    assert {name for name, row in rows.items() if row.status == "failed"} == {"repository", "output folder", "model"}
    assert all(row.remedy for row in rows.values() if row.status == "failed")
    assert rows["plan"].status == rows["clock"].status == "skipped"


@pytest.mark.parametrize("damage", ["read-only home", "file in place of the folder", "folder in place of the index"])
def test_runs_that_would_not_be_listed_are_a_warning(tmp_path, monkeypatch, damage):
    state = tmp_path / "state"
    if damage == "read-only home":
        state = Path("/proc/state")  # refuses root as well
    elif damage == "file in place of the folder":
        state.write_text("")
    else:
        (state / "outputs.jsonl").mkdir(parents=True)
    monkeypatch.setenv(STATE_VARIABLE, str(state))
    rows = by_name(examine(configure(tmp_path), probe=False))
    row = rows["list of runs"]
    assert (row.status, rows["output folder"].status) == ("warning", "passed")
    assert str(state) in row.text
    assert STATE_VARIABLE in row.remedy
    # What the remedy says makes it pass, and nothing is left behind.
    monkeypatch.setenv(STATE_VARIABLE, str(tmp_path / "new"))
    assert by_name(examine(configure(tmp_path), probe=False))["list of runs"].status == "passed"
    assert not (tmp_path / "new").exists()


def test_a_disk_that_is_too_small_fails(tmp_path, monkeypatch):
    most = 1_000_000  # as many as may be kept, tens of terabytes
    config = configure(tmp_path, checkpoint={"keep": most})
    row = by_name(examine(config, probe=False))["disk"]
    assert row.status == "failed"
    assert "needs" in row.text


def test_positions_past_the_trained_length_are_a_warning(tmp_path):
    row = by_name(examine(configure(tmp_path, training={"context": 40_000}), probe=False))["context"]
    assert row.status == "warning"


@pytest.mark.parametrize("own", [None, {"rope_type": "linear", "factor": 4.0}])
def test_the_context_row_says_of_positions_what_the_plan_does(tmp_path, own):
    model = tmp_path / "model"
    shutil.copytree(asset("demo-model"), model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "rope_parameters": None, "rope_scaling": own}))
    settings = configure(tmp_path, training={"context": 40_960}, model={"name": str(model)})
    rows = by_name(examine(settings, probe=False))
    changes = BaseChanges.of(settings.model, find_model(str(model)), 40_960)
    if own is None:
        assert changes.yarn_factor == 5
        assert "YaRN stretches its positions 5 times" in rows["plan"].text
        assert "YaRN stretches its positions 5 times" in rows["context"].text
    else:
        assert changes.yarn_factor is None, "stretch_positions leaves a scaling of the model's own as it is"
        assert "YaRN" not in rows["plan"].text + rows["context"].text
        assert "linear scaling of its files" in rows["context"].text


def test_without_a_plan_no_gpu_memory_is_asked_for(monkeypatch):
    """It would take all there is, and leave the trial step nothing."""
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (24 << 30, 24 << 30))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: taken.append("emptied"))
    monkeypatch.setattr(torch, "empty", lambda size, **_: taken.append(size))
    [row] = doctor_probe._gpu_memory(from_mapping({}), None)
    assert (row.status, taken) == ("skipped", [])
    [row] = doctor_probe._gpu_memory(from_mapping({}), 3 << 30)
    assert (row.status, taken) == ("passed", [1 << 30, 1 << 30, 1 << 30, "emptied"])


@pytest.mark.parametrize(
    ("processes", "words"), [(1, "1 other process holds memory"), (2, "2 other processes hold memory")]
)
def test_a_card_that_others_use_is_a_warning(processes, words, tmp_path, monkeypatch):
    machine = take_inventory(tmp_path)
    gpu = Gpu(index=0, name="Card", memory_total=24 << 30, memory_free=20 << 30, processes=processes)
    monkeypatch.setattr(doctor, "take_inventory", lambda path: dataclasses.replace(machine, gpus=(gpu,)))
    rows = by_name(examine(configure(tmp_path), probe=False))
    assert rows["GPU"].status == "passed"
    assert words in rows["other users of the GPU"].text


def test_a_library_of_another_version_is_named():
    assert library_checks({"torch": "1.13.1"}) == ["torch is 1.13.1, and <2.14,>=2.11 is needed"]
    assert library_checks({"bitsandbytes": "0.30.0"})
    assert library_checks({"deepspeed": None, "flash-attn": None}) == []


def test_versions_of_test_tools_bind_no_user():
    """torch 2.13 for CUDA brings Triton 3.7.1; the tests, which run its interpreter, want a newer one."""
    assert library_checks({"triton": "3.7.1"}) == []
    assert library_checks({"triton": "3.5.0"}) == ["triton is 3.5.0, and >=3.6 is needed"]


def test_a_tokenizer_of_another_model_is_found(tmp_path):
    model = tmp_path / "model"
    shutil.copytree(asset("demo-model"), model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "vocab_size": 1000}))
    row = by_name(examine(configure(tmp_path, model={"name": str(model)})))["tokenizer"]
    assert row.status == "failed"
    assert "id 1,000" in row.text


def test_a_library_that_kills_its_process_is_a_row(tmp_path, monkeypatch):
    """A torch that dies on import, as one of another ABI does."""
    (tmp_path / "torch.py").write_text("import os\nos.abort()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    rows = list(examine(configure(tmp_path)))
    assert rows[-1].name == "number formats"
    assert rows[-1].status == "failed"
    assert "-6" in rows[-1].text


@pytest.mark.parametrize("problem", [False, True])
def test_the_command_prints_json_and_exits_3_where_something_fails(tmp_path, capsys, problem):
    repository = str(tmp_path / "missing") if problem else str(HERE)
    arguments = ["doctor", "--repo", repository, "--output", str(tmp_path / "out"), "--quick", "--json"]
    assert main([*arguments, "--set", "training.context=128"]) == (3 if problem else 0)
    rows = json.loads(capsys.readouterr().out)
    assert {tuple(row) for row in rows} == {("name", "status", "text", "remedy")}


def test_examining_imports_no_torch(tmp_path):
    code = (
        "import sys\nfrom engine.config import RunConfig\nfrom engine.launch.doctor import examine\n"
        "list(examine(RunConfig(), probe=False))\nassert 'torch' not in sys.modules\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
