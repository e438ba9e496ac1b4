"""An adapter is folded into the weights that it was trained on, or not at all; and exports are compared by default."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.exports import adapter_logits, finished_run, logits, save_base
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from engine import cli
from engine.errors import EliteError
from engine.export import check
from engine.export.exporting import export
from engine.export.merging import Update
from engine.generation.run_models import RunModels, load_adapted
from engine.models.base_fingerprint import FILE_NAME, Fingerprint, fingerprint
from engine.models.catalogue import find_model
from engine.models.loading import open_weights
from engine.models.placement import choose_placement
from engine.plan.step_layout import StepLayout
from engine.recipes.setup import identify_base

IDS = torch.arange(3, 131)[None]
PROJECTION = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def run(tmp_path, tokenizers):
    return finished_run(tmp_path / "out", save_base(tmp_path / "base", "llama", tokenizers["llama"]))


def base_of(run):
    return find_model(run.load_config().model.name).path


def edit(path, change):
    tensors = load_file(path / "model.safetensors")
    save_file(change(tensors), path / "model.safetensors", metadata={"format": "pt"})


def print_of(path):
    return fingerprint(open_weights(find_model(str(path)))[0])


def code_of(call):
    with pytest.raises(EliteError) as caught:
        call()
    assert caught.value.exit_code == 2
    return caught.value.code


CHANGES = {
    "fine-tuned once more": lambda tensors: {k: v + 1e-3 * torch.randn_like(v) for k, v in tensors.items()},
    "one weight": lambda tensors: {**tensors, PROJECTION: tensors[PROJECTION] + 1e-3},
    "other numbers": lambda tensors: {**tensors, PROJECTION: tensors[PROJECTION].half()},
    "two layers exchanged": lambda tensors: {
        **tensors,
        PROJECTION: tensors[PROJECTION.replace("1", "0")].clone(),
        PROJECTION.replace("1", "0"): tensors[PROJECTION].clone(),
    },
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_an_adapter_is_not_folded_into_other_weights(change, run, tmp_path):
    edit(base_of(run), change)
    for target in ("merged", "gguf"):
        assert code_of(lambda target=target: export(run, target, tmp_path / target)) == "base-changed"
        assert not (tmp_path / target).exists()
    assert code_of(lambda: export(run, "adapter", tmp_path / "adapter", check=True)) == "base-changed"
    assert "not the one that run" in export(run, "adapter", tmp_path / "adapter").unchecked


def test_an_adapter_is_not_used_on_other_weights(run):
    edit(base_of(run), CHANGES["one weight"])
    found = RunModels(
        spec=find_model(str(base_of(run))),
        placement=choose_placement("cpu", "fp32"),
        layout=StepLayout(stream=None, recompute=False),
        context=64,
        result=run.adapter_path,
    )
    assert code_of(lambda: load_adapted(found, run.load_config())) == "base-changed"


@pytest.mark.parametrize("leads", [True, False])
def test_a_run_is_resumed_on_the_weights_that_it_began_with(leads, run):
    session = SimpleNamespace(run=run, group=SimpleNamespace(leads=leads))
    spec = find_model(str(base_of(run)))
    began = identify_base(SimpleNamespace(run=run, group=SimpleNamespace(leads=True)), spec)
    assert identify_base(session, spec) == began == Fingerprint.read(run.path)
    edit(base_of(run), CHANGES["one weight"])
    assert code_of(lambda: identify_base(session, spec)) == "base-changed"
    (run.path / FILE_NAME).write_text("{")
    assert code_of(lambda: identify_base(session, spec)) == "run-damaged"


def test_other_files_with_the_same_weights_are_the_same_base(run, tmp_path):
    base = base_of(run)
    expected = print_of(base)
    tensors = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    names = sorted(tensors)
    where = {name: f"model-{number % 3 + 1:05}-of-00003.safetensors" for number, name in enumerate(names)}
    for file in set(where.values()):
        part = {name.removeprefix("model."): tensors[name] for name in names if where[name] == file}
        save_file(part, base / file, metadata={"format": "pt"})
    weight_map = {name.removeprefix("model."): file for name, file in where.items()}
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert print_of(base) == expected
    written = export(run, "merged", tmp_path / "merged", "f32")
    merged = AutoModelForCausalLM.from_pretrained(written.path)
    torch.testing.assert_close(logits(merged, IDS), adapter_logits(run, IDS), rtol=1e-4, atol=1e-4)
    assert set(load_file(written.path / "model.safetensors")) == set(names)


def test_4_bit_weights_of_another_scale_differ(tmp_path, tokenizers):
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    original = save_base(tmp_path / "original", "llama", tokenizers["llama"], intermediate_size=128)
    found = []
    for factor in (1.0, 2.0):
        edit(original, lambda tensors, factor=factor: {k: v * factor for k, v in tensors.items()})
        base = tmp_path / f"base-{factor}"
        shutil.copytree(original, base)
        AutoModelForCausalLM.from_pretrained(original, quantization_config=settings).save_pretrained(base)
        found.append(print_of(base))
    assert all(found[0].parts[name] != found[1].parts[name] for name in found[0].parts)


def test_a_run_of_4_bits_exports_what_they_stand_for(tmp_path, tokenizers):
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4")
    original = save_base(tmp_path / "original", "qwen2", tokenizers["qwen2"], intermediate_size=128)
    base = tmp_path / "base"
    shutil.copytree(original, base)
    AutoModelForCausalLM.from_pretrained(original, quantization_config=settings).save_pretrained(base)
    run = finished_run(tmp_path / "out", base, precision="nf4")
    for target in ("merged", "gguf", "adapter"):
        written = export(run, target, tmp_path / target, None if target == "adapter" else "f32")
        assert written.difference.relative < 1e-4


def test_a_run_without_a_fingerprint_is_exported(run, tmp_path):
    (run.adapter_path / FILE_NAME).unlink()
    assert export(run, "merged", tmp_path / "merged").difference is not None


def test_a_damaged_fingerprint_is_refused(run, tmp_path):
    (run.adapter_path / FILE_NAME).write_text('{"version": 1, "weights": 3}')
    assert code_of(lambda: export(run, "merged", tmp_path / "merged")) == "export-damaged"


def test_an_export_that_is_wrong_is_refused_without_being_asked(run, tmp_path, monkeypatch):
    real = Update.applied
    monkeypatch.setattr(Update, "applied", lambda self, weight: real(self, weight) * 1.1)
    for target in ("merged", "gguf"):
        with pytest.raises(EliteError) as caught:
            export(run, target, tmp_path / target)
        assert caught.value.code == "export-differs"
        assert not (tmp_path / target).exists()


def test_no_check_leaves_it_out_and_large_files_say_so(run, tmp_path, monkeypatch, capsys):
    arguments = ["export", str(run.path), "--to", "merged"]
    assert cli.main([*arguments, "--no-check", "--output", str(tmp_path / "one")]) == 0
    assert "compared" not in capsys.readouterr().err
    monkeypatch.setattr(check, "MOST_BYTES", 1 << 10)
    assert cli.main([*arguments, "--output", str(tmp_path / "two")]) == 0
    assert "not compared with the run's model: it is larger than" in capsys.readouterr().err
    assert cli.main([*arguments, "--check", "--output", str(tmp_path / "three")]) == 0
    assert "checked: over" in capsys.readouterr().err
