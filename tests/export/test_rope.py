"""A GGUF file says how heads are turned so that llama.cpp turns them as the run did, or is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file, save_file
from support.exports import adapter_logits, finished_run, logits, save_base
from transformers import AutoModelForCausalLM

from engine.errors import EliteError
from engine.export.exporting import export
from engine.export.gguf_rope import read_table

IDS = torch.arange(3, 131)[None]
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}
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
    "short_factor": [1.0 + 0.25 * n for n in range(8)],
    "long_factor": [1.0 + 0.5 * n for n in range(8)],
    "original_max_position_embeddings": 128,
}
WRITTEN = {
    "default": ("llama", {"rope_type": "default", "rope_theta": 500.0}),
    "linear": ("qwen2", {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0}),
    "yarn": ("qwen2", YARN),
    "yarn, attention factor": ("llama", {**YARN, "attention_factor": 1.5}),
    "yarn, mscale": ("qwen3", {**YARN, "mscale": 0.707, "mscale_all_dim": 1.0}),
    "yarn, longer": ("llama", {**YARN, "factor": 32.0, "rope_theta": 1e6, "original_max_position_embeddings": 2048}),
    "llama3": ("llama", LLAMA3),
    "longrope": ("phi3", LONGROPE),
    "longrope, attention factor": ("phi3", {**LONGROPE, "attention_factor": 1.25}),
}
REFUSED = {
    "betas": ("llama", {**YARN, "beta_fast": 64.0, "beta_slow": 2.0}, "betas"),
    "range": ("qwen3", {**YARN, "truncate": False}, "truncate"),
    "dynamic": ("llama", {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}, "dynamic"),
    "divisors": ("qwen2", LLAMA3, "llama3"),
    "long divisors": ("llama", LONGROPE, "longrope"),
}


def run_of(tmp_path, tokenizers, family, rope, **shape):
    tokenizer = tokenizers["qwen2" if family.startswith("qwen") else "llama"]
    context = 512 if rope.get("factor", 1.0) < 32 else 65536
    extra = {"original_max_position_embeddings": 128} if rope.get("rope_type") == "longrope" else {}
    shape = {"max_position_embeddings": context, "rope_parameters": rope, **extra, **shape}
    return finished_run(tmp_path / "out", save_base(tmp_path / "base", family, tokenizer, **shape))


@pytest.mark.parametrize("case", WRITTEN.values(), ids=WRITTEN.keys())
def test_the_file_s_table_is_the_one_of_training(case, tmp_path, tokenizers):
    run = run_of(tmp_path, tokenizers, *case)
    written = export(run, "gguf", dtype="f32", check=True)
    assert written.difference.relative < 1e-5
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    table = read_table(next(written.path.glob("*.gguf")), 128)
    # What transformers multiplies by each position is the reference; nothing of it went into the table.
    rotary = model.model.rotary_emb
    cosine, sine = rotary(torch.zeros(1, 1, 1, dtype=torch.float32), torch.arange(128)[None])
    angles = np.outer(np.arange(128), table.frequencies)
    half = angles.shape[1]
    np.testing.assert_allclose(table.magnitude * np.cos(angles), cosine[0, :, :half].numpy(), atol=5e-5)
    np.testing.assert_allclose(table.magnitude * np.sin(angles), sine[0, :, :half].numpy(), atol=5e-5)


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
def test_what_llama_cpp_would_compute_otherwise_is_refused(case, tmp_path, tokenizers):
    family, rope, word = case
    run = run_of(tmp_path, tokenizers, family, rope)
    with pytest.raises(EliteError, match=word) as caught:
        export(run, "gguf", tmp_path / "gguf")
    assert caught.value.code == "model-family-unsupported"
    assert not (tmp_path / "gguf").exists()


def test_long_contexts_take_the_long_divisors(tmp_path, tokenizers):
    run = run_of(tmp_path, tokenizers, "phi3", LONGROPE)
    file = next(export(run, "gguf", dtype="f32").path.glob("*.gguf"))
    short, long = read_table(file, 128).frequencies, read_table(file, 129).frequencies
    np.testing.assert_allclose(short / long, np.array(LONGROPE["long_factor"]) / LONGROPE["short_factor"], rtol=1e-6)


@pytest.mark.parametrize("lost", ["scaling_attn_factors", "scaling_factor", "scaling_type", "freq_base"])
def test_the_check_sees_a_setting_that_is_lost(lost, tmp_path, tokenizers, monkeypatch):
    from gguf import GGUFWriter

    run = run_of(tmp_path, tokenizers, "llama", {**YARN, "attention_factor": 1.5, "rope_theta": 5000.0})
    monkeypatch.setattr(GGUFWriter, f"add_rope_{lost}", lambda *_: None)
    with pytest.raises(EliteError) as caught:
        export(run, "gguf", tmp_path / "gguf", "f32", check=True)
    assert caught.value.code == "export-differs"
    assert not (tmp_path / "gguf").exists()


def test_stored_frequencies_are_no_tensors_of_the_file(tmp_path, tokenizers):
    run = run_of(tmp_path, tokenizers, "llama", {"rope_type": "default", "rope_theta": 10000.0})
    path = tmp_path / "base" / "model.safetensors"
    tensors = dict(load_file(path))
    for layer in range(2):
        tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.rand(8)
    save_file(tensors, path, metadata={"format": "pt"})
    written = export(run, "gguf", dtype="f32", check=True)
    reader = GGUFReader(next(written.path.glob("*.gguf")))
    assert not [tensor.name for tensor in reader.tensors if "rot" in tensor.name]
    assert written.difference.relative < 1e-5


def test_a_merged_model_ends_and_begins_where_training_did(tmp_path, tokenizers):
    run = run_of(tmp_path, tokenizers, "llama", {"rope_type": "default", "rope_theta": 10000.0})
    base = tmp_path / "base"
    # Defaults of a class, which name ordinary tokens, beside a further control token.
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": [300, 1], "temperature": 0.5}))
    config = json.loads((base / "config.json").read_text()) | {"eos_token_id": 300, "bos_token_id": 301}
    (base / "config.json").write_text(json.dumps(config))
    written = export(run, "merged", dtype="f32", check=True).path
    generation, config = (
        json.loads((written / f"{name}.json").read_text()) for name in ("generation_config", "config")
    )
    assert (generation["eos_token_id"], generation["bos_token_id"]) == ([2, 1], 1)
    assert (config["eos_token_id"], config["bos_token_id"]) == (2, 1)
    assert generation["temperature"] == 0.5
    model = AutoModelForCausalLM.from_pretrained(written)
    assert model.generation_config.eos_token_id == [2, 1]
    torch.testing.assert_close(logits(model, IDS), adapter_logits(run, IDS), rtol=1e-4, atol=1e-4)
