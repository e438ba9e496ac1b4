"""Adapter, merged model and GGUF file say the same, for every family and every way to adapt."""

from __future__ import annotations

import json
import shutil

import msgspec
import pytest
import torch
from support.exports import adapter_logits, finished_run, logits, save_base
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from engine.config import ModelSection
from engine.export import merged as merged_module
from engine.export.check import TOLERANCE
from engine.export.exporting import DEQUANTISED, NOT_AS_TRAINED, ORIGINAL, UNTOUCHED, export
from engine.models.base_changes import NO_CHANGES, BaseChanges
from engine.models.base_fingerprint import fingerprint
from engine.models.catalogue import find_model
from engine.models.loading import load_model, open_weights
from engine.models.placement import choose_placement

IDS = torch.arange(3, 131)[None]
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [1.0 + 0.5 * n for n in range(8)],
    "original_max_position_embeddings": 128,
}
YARN = BaseChanges(yarn_factor=4.0)
CASES = {
    "qwen2, tied, head adapted": (
        "qwen2",
        "qwen2",
        {"tied": True},
        {"lora": {"targets": ["q_proj", "down_proj", "lm_head"]}},
    ),
    "qwen2, DoRA and rsLoRA": ("qwen2", "qwen2", {}, {"lora": {"dora": True, "rslora": True}}),
    "qwen2, stretched": ("qwen2", "qwen2", {"max_position_embeddings": 64}, {"changes": YARN}),
    "qwen3": ("qwen3", "qwen2", {}, {}),
    "llama, rotary positions of Llama 3": ("llama", "llama-bpe", {"rope_parameters": LLAMA3}, {}),
    "llama, biases": ("llama", "llama", {"attention_bias": True, "mlp_bias": True}, {}),
    "llama, heads pooled": ("llama", "llama", {"num_key_value_heads": 4}, {"changes": BaseChanges(kv_heads=2)}),
    "mistral": ("mistral", "llama", {}, {}),
    "phi3": ("phi3", "llama", {}, {}),
    "phi3, longrope": (
        "phi3",
        "llama",
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": 128},
        {},
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_every_export_gives_the_adapters_logits(case, tmp_path, tokenizers):
    family, tokenizer, shape, run_settings = case
    run = finished_run(
        tmp_path / "out", save_base(tmp_path / "base", family, tokenizers[tokenizer], **shape), **run_settings
    )
    expected = adapter_logits(run, IDS, run_settings.get("changes", NO_CHANGES))
    assert run.summary().model  # the run is one that `engine runs` would list

    written = export(run, "merged", tmp_path / "merged", "f32")
    model = AutoModelForCausalLM.from_pretrained(written.path, dtype=torch.float32)
    torch.testing.assert_close(logits(model, IDS), expected, rtol=1e-4, atol=1e-4)
    assert written.base == ORIGINAL

    checked = export(run, "gguf", tmp_path / "gguf", "f32", check=True)
    assert checked.difference.relative < 1e-5
    assert checked.difference.same_choice == 1.0


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "q8_0"])
@pytest.mark.parametrize("target", ["merged", "gguf"])
def test_other_formats_differ_by_their_rounding_only(target, dtype, qwen_run, tmp_path):
    if (target, dtype) == ("merged", "q8_0"):
        pytest.skip("safetensors has no such format")
    written = export(qwen_run, target, tmp_path / "out", dtype, check=True)
    # Above what fp32 would give, so the format is the one that was asked for; and well within its tolerance.
    assert 1e-5 < written.difference.relative < TOLERANCE[dtype]
    assert written.difference.same_choice > 0.9


def test_the_adapter_is_peft_s(qwen_run, tmp_path):
    from peft import PeftModel

    written = export(qwen_run, "adapter", tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(qwen_run.load_config().model.name, dtype=torch.float32)
    found = logits(PeftModel.from_pretrained(base, written.path), IDS)
    torch.testing.assert_close(found, adapter_logits(qwen_run, IDS), rtol=1e-5, atol=1e-5)


def test_a_model_of_several_pieces_loads_and_is_the_same(qwen_run, tmp_path, monkeypatch):
    whole = export(qwen_run, "merged", tmp_path / "whole", "f32")
    monkeypatch.setattr(merged_module, "PIECE_BYTES", 50_000)
    pieces = export(qwen_run, "merged", tmp_path / "pieces", "f32")
    files = [name for name in pieces.files if name.endswith(".safetensors")]
    assert len(files) > 3
    index = json.loads((pieces.path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(files)
    one, other = (AutoModelForCausalLM.from_pretrained(export_.path).state_dict() for export_ in (whole, pieces))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_on_a_4_bit_copy_is_merged_into_the_original_weights(tmp_path, tokenizers):
    base = save_base(tmp_path / "base", "llama", tokenizers["llama"])
    run = finished_run(tmp_path / "out", base, precision="nf4")
    written = export(run, "merged", tmp_path / "merged", "f32", check=True)
    assert written.difference.relative < 1e-5
    assert written.base == ORIGINAL + NOT_AS_TRAINED


def test_a_base_that_exists_in_4_bits_only_is_dequantised(tmp_path, tokenizers):
    from peft import PeftModel

    original = save_base(tmp_path / "original", "llama", tokenizers["llama"], intermediate_size=128)
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    base = tmp_path / "base"
    shutil.copytree(original, base)
    AutoModelForCausalLM.from_pretrained(original, quantization_config=four_bits, dtype=torch.float32).save_pretrained(
        base
    )
    run = finished_run(tmp_path / "out", original)
    run.write_config(msgspec.structs.replace(run.load_config(), model=ModelSection(name=str(base), precision="nf4")))
    fingerprint(open_weights(find_model(str(base)))[0]).save(run.adapter_path)  # as of a run that trained on these

    quantised = load_model(find_model(str(original)), choose_placement("cpu", "nf4"))
    expected = logits(PeftModel.from_pretrained(quantised, run.adapter_path), IDS)
    written = export(run, "merged", tmp_path / "merged", "f32")
    assert written.base == DEQUANTISED
    model = AutoModelForCausalLM.from_pretrained(written.path, dtype=torch.float32)
    assert not hasattr(model.config, "quantization_config")
    found = logits(model, IDS)
    # The 4-bit layers multiply in the CPU's fastest format; far from the original weights, near to these.
    apart = ((found - expected).square().mean().sqrt() / expected.std()).item()
    lost = ((adapter_logits(run_on(run, original), IDS) - expected).square().mean().sqrt() / expected.std()).item()
    assert apart < 0.03
    assert lost > 3 * apart


def run_on(run, base):
    run.write_config(msgspec.structs.replace(run.load_config(), model=ModelSection(name=str(base))))
    return run


def test_the_embedded_model_needs_no_files_of_its_own(tmp_path):
    run = finished_run(tmp_path / "out", "demo")
    ids = torch.arange(100)[None]
    written = export(run, "gguf", tmp_path / "gguf", "f32", check=True)
    assert written.difference.relative < 1e-5
    merged = AutoModelForCausalLM.from_pretrained(export(run, "merged", dtype="f32").path)
    torch.testing.assert_close(logits(merged, ids), adapter_logits(run, ids), rtol=1e-4, atol=1e-3)


def test_a_run_that_trained_every_weight_is_written_as_it_is(qwen_run, tmp_path, tokenizers):
    run = finished_run(tmp_path / "out", save_base(tmp_path / "base", "qwen2", tokenizers["qwen2"]))
    trained = save_base(run.model_path, "qwen2", tokenizers["qwen2"], seed=5)
    for file in run.adapter_path.iterdir():
        file.unlink()
    run.adapter_path.rmdir()
    written = export(run, "merged", tmp_path / "merged", "f32")
    assert written.base == UNTOUCHED
    one, other = (AutoModelForCausalLM.from_pretrained(path) for path in (written.path, trained))
    assert torch.equal(logits(one, IDS), logits(other, IDS))
