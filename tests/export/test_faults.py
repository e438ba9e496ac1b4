"""What cannot be exported is one line that says why, and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.exports import finished_run, save_base
from support.mounts import needs_mount, run_mounted
from support.tiny import tiny_model

from engine.errors import EliteError
from engine.export import target
from engine.export.exporting import export
from engine.generation.run_models import result_of


def error_of(call):
    with pytest.raises(EliteError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return caught.value


def test_nothing_is_written_over(qwen_run, tmp_path):
    there = tmp_path / "there"
    there.mkdir()
    assert error_of(lambda: export(qwen_run, "merged", there)).code == "export-exists"
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert error_of(lambda: export(qwen_run, "adapter", tmp_path / "link")).code == "export-exists"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "there"]


def test_a_disk_with_too_little_room_is_seen_before_anything_is_written(qwen_run, tmp_path, monkeypatch):
    monkeypatch.setattr(target, "_MARGIN", 1 << 60)
    error = error_of(lambda: export(qwen_run, "gguf", tmp_path / "new" / "deep" / "gguf"))
    assert (error.code, error.exit_code) == ("export-full", 3)
    assert list(tmp_path.iterdir()) == []


FILLS_UP = """
import shutil, sys
from pathlib import Path
from engine.errors import EliteError
from engine.export.exporting import export
from engine.generation.run_models import result_of
from engine.runs.run_directory import RunDirectory
small, run = Path(sys.argv[1]), RunDirectory(Path({run!r}))
shutil.disk_usage = lambda path: shutil._ntuple_diskusage(1 << 40, 0, 1 << 40)  # it was free when it was looked at
for to in ("adapter", "merged", "gguf"):
    try:
        export(run, to, small / "new" / to)
    except EliteError as error:
        print(to, error.code, error.exit_code, list(small.iterdir()))
"""


@needs_mount
def test_a_disk_that_fills_up_leaves_nothing_behind(qwen_run, tmp_path):
    said = run_mounted(FILLS_UP.format(run=str(qwen_run.path)), tmp_path, "64k")
    assert said.splitlines() == [f"{to} export-full 3 []" for to in ("adapter", "merged", "gguf")]


def test_a_folder_that_cannot_be_written_is_named(qwen_run):
    error = error_of(lambda: export(qwen_run, "adapter", target.Path("/proc/export/here")))
    assert error.code == "output-unwritable"


def test_leftovers_of_a_killed_export_go_and_those_of_a_live_one_stay(qwen_run, tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead, live = tmp_path / f".out.{ended.pid}.new", tmp_path / f".out.{os.getppid()}.new"
    dead.mkdir()
    live.mkdir()
    export(qwen_run, "adapter", tmp_path / "out")
    assert not dead.exists()
    assert live.exists()


def test_a_family_without_a_place_in_gguf_is_refused_by_name(tmp_path, qwen_run, tokenizers):
    base = tmp_path / "base"
    tiny_model("phi", vocab_size=640).save_pretrained(base)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(qwen_run.adapter_path / name, base / name)
    run = finished_run(tmp_path / "out", base)
    error = error_of(lambda: export(run, "gguf"))
    assert error.code == "model-family-unsupported"
    assert "phi " in error.message
    for family in ("llama", "phi3", "qwen2"):
        assert family in error.remedy
    assert "model.safetensors" in export(run, "merged").files  # which every family has


def test_a_window_that_llama_cpp_would_ignore_is_refused(tmp_path, tokenizers):
    base = save_base(tmp_path / "base", "mistral", tokenizers["llama"], sliding_window=64)
    error = error_of(lambda: export(finished_run(tmp_path / "out", base), "gguf"))
    assert "sliding window of 64" in error.message


def test_a_run_without_a_result_says_how_to_get_one(qwen_run, tmp_path):
    run = type(qwen_run).create(qwen_run.load_config())
    starting = error_of(lambda: export(run, "merged", tmp_path / "out"))
    assert starting.code == "export-nothing"
    assert f"engine stop {run.id}" in starting.remedy
    assert "--resume" not in starting.remedy  # it would be refused
    os.utime(run.config_path, (0, 0))  # nobody has started it since
    died = error_of(lambda: export(run, "merged", tmp_path / "out"))
    assert died.code == "export-nothing"
    assert "--resume" in died.remedy
    shutil.rmtree(run.path)


@pytest.mark.parametrize(("to", "dtype"), [("adapter", "bf16"), ("merged", "q8_0")])
def test_a_format_that_a_target_does_not_have(to, dtype, qwen_run, tmp_path):
    error = error_of(lambda: export(qwen_run, to, tmp_path / "out", dtype))
    assert (error.code, error.exit_code) == ("export-dtype", 2)


def test_numbers_that_fp16_cannot_hold_are_refused(tmp_path, tokenizers):
    base = save_base(tmp_path / "base", "qwen2", tokenizers["qwen2"])
    weights = load_file(base / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = 1e5
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    run = finished_run(tmp_path / "out", base)
    for to in ("merged", "gguf"):
        error = error_of(lambda to=to: export(run, to, tmp_path / to, "fp16"))
        assert "model.layers.1.mlp.up_proj.weight" in error.message
        assert not (tmp_path / to).exists()


@pytest.mark.parametrize("sealed", [True, False], ids=["with its manifest", "of an earlier version"])
@pytest.mark.parametrize("damage", ["truncated", "another model", "not finite", "no config"])
def test_a_damaged_adapter_is_refused(damage, sealed, qwen_run, tmp_path):
    run = type(qwen_run)(tmp_path / qwen_run.id)
    shutil.copytree(qwen_run.path, run.path)
    file = run.adapter_path / "adapter_model.safetensors"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "another model":
        save_file({name.replace("layers.1", "layers.9"): tensor for name, tensor in load_file(file).items()}, file)
    elif damage == "not finite":
        save_file({name: torch.full_like(tensor, float("nan")) for name, tensor in load_file(file).items()}, file)
    else:
        (run.adapter_path / "adapter_config.json").unlink()
    if not sealed:
        (run.adapter_path / "manifest.json").unlink()
    code = "result-damaged" if sealed and damage != "no config" else "export-damaged"
    for to in ("merged", "gguf"):
        assert error_of(lambda to=to: export(run, to, tmp_path / to)).code == code
        assert not (tmp_path / to).exists()


@pytest.mark.parametrize("left", ["a pickle", "nothing", "an empty file"])
def test_an_adapter_without_weights_is_refused(left, qwen_run, tmp_path):
    run = type(qwen_run)(tmp_path / qwen_run.id)
    shutil.copytree(qwen_run.path, run.path)
    file = run.adapter_path / "adapter_model.safetensors"
    file.unlink()
    if left == "a pickle":
        torch.save({"x": torch.ones(1)}, run.adapter_path / "adapter_model.bin")
    elif left == "an empty file":
        file.touch()
    assert error_of(lambda: export(run, "adapter", tmp_path / "out")).code == "result-damaged"
    assert error_of(lambda: result_of(run)).code == "result-damaged"
