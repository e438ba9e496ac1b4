"""llama.cpp itself runs what is exported for it, and says what transformers says of the merged model."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Format
from gguf import GGUFReader
from peft import PeftModel
from safetensors.torch import load_file, save_file
from support.exports import VOCABULARY, finished_run, save_base
from support.llama_cpp import llama_cpp, llama_server
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from engine import atomic_dir
from engine.errors import EliteError
from engine.export import gguf_tokenizer, k_quants
from engine.export.exporting import export
from engine.runs.run_directory import RunDirectory

TEXT = "def merge(left: list[int], right: list[int]) -> list[int]:\n\treturn sorted(left + right)  # naïve, 2026 ✓\n"
WIDE = {"hidden_size": 256, "intermediate_size": 512}
EXPERTS = {
    "num_experts": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 256,
    "norm_topk_prob": True,
}
GEMMA = {
    "num_hidden_layers": 7,  # one of six attends to everything
    "head_dim": 64,
    "query_pre_attn_scalar": 64,
    "sliding_window": 16,
    "final_logit_softcapping": 20.0,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    },
}
GRANITE = {
    "embedding_multiplier": 12.0,
    "logits_scaling": 8.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.0625,
}
FAMILIES = {
    "qwen2, tied": ("qwen2", "qwen2", {"tied": True}),
    "qwen3": ("qwen3", "qwen2", {}),
    "qwen3_moe": ("qwen3_moe", "qwen2", EXPERTS),
    "llama": ("llama", "llama-bpe", {}),
    "llama, byte fallback": ("llama", "llama", {}),
    "mistral": ("mistral", "llama", {}),
    "phi3": ("phi3", "llama", {}),
    "gemma": ("gemma", "llama", {"head_dim": 64, "tied": True}),
    "gemma3": ("gemma3_text", "llama", GEMMA),
    "granite": ("granite", "llama", GRANITE),
    "olmo2": ("olmo2", "qwen2", {}),
    "seed_oss": ("seed_oss", "qwen2", {"head_dim": 64, "tied": True}),
    "smollm3": ("smollm3", "llama-bpe", {"num_hidden_layers": 5}),
}


def chances(folder, prompt):
    """Log-probabilities of the token after a prompt, by plain transformers in fp32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1).numpy()


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tokenizers):
    """Runs by family; made once each."""
    made = {}

    def run(case):
        if case not in made:
            family, tokenizer, shape = FAMILIES[case]
            path = tmp_path_factory.mktemp("run")
            made[case] = finished_run(
                path / "out", save_base(path / "base", family, tokenizers[tokenizer], **WIDE, **shape)
            )
        return made[case]

    return run


@pytest.mark.parametrize("case", FAMILIES)
def test_it_runs_there_as_in_transformers(case, runs, tmp_path):
    run = runs(case)
    merged = export(run, "merged", tmp_path / "merged", "f32", check=False).path
    file = next(export(run, "gguf", tmp_path / "gguf", "f32", check=False).path.glob("*.gguf"))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(merged)
    ids = tokenizer(TEXT)["input_ids"]
    with llama_cpp(file, VOCABULARY) as ask:
        found = ask(ids)
        np.testing.assert_allclose(found, chances(merged, ids), atol=0.02)
        np.testing.assert_allclose(ask(TEXT), found, atol=0.05)  # its own tokenizer makes the same tokens


@pytest.mark.parametrize(("mix", "most"), [("q5_k_m", 0.3), ("q4_k_m", 0.6)])
def test_k_quants_run_there(mix, most, runs, tmp_path):
    run = runs("qwen3")
    written = export(run, "gguf", tmp_path / mix, mix, check=True)
    file = next(written.path.glob("*.gguf"))
    assert file.name == f"tiny-{mix}.gguf"
    kinds = {tensor.name: tensor.tensor_type for tensor in GGUFReader(file).tensors}
    assert kinds["output.weight"] == Format.Q6_K
    assert kinds["blk.0.attn_q.weight"] == (Format.Q4_K if mix == "q4_k_m" else Format.Q5_K)
    assert kinds["blk.0.attn_norm.weight"] == Format.F32
    merged = export(run, "merged", tmp_path / "merged", "f32", check=False).path
    ids = AutoTokenizer.from_pretrained(merged)(TEXT)["input_ids"]
    expected = chances(merged, ids)
    with llama_cpp(file, VOCABULARY) as ask:
        assert np.sqrt(np.mean((ask(ids) - expected) ** 2)) / expected.std() < most


@pytest.mark.parametrize("dtype", ["q4_k_m", "bf16"])
def test_what_chooses_experts_is_not_rounded(dtype, runs, tmp_path):
    run = runs("qwen3_moe")
    file = next(export(run, "gguf", tmp_path / dtype, dtype, check=False).path.glob("*.gguf"))
    merged = export(run, "merged", tmp_path / "merged", "f32", check=False).path
    stored = load_file(merged / "model.safetensors")
    tensors = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    for layer in range(2):
        router = tensors[f"blk.{layer}.ffn_gate_inp.weight"]
        assert router.tensor_type == Format.F32
        np.testing.assert_array_equal(router.data, stored[f"model.layers.{layer}.mlp.gate.weight"].numpy())
    assert tensors["blk.0.ffn_up_exps.weight"].tensor_type.name.lower() == dtype.removesuffix("_m")
    ids = AutoTokenizer.from_pretrained(merged)(TEXT)["input_ids"]
    with llama_cpp(file, VOCABULARY) as ask:
        assert np.corrcoef(ask(ids), chances(merged, ids))[0, 1] > 0.8


def test_the_mixes_spend_more_on_the_layers_at_both_ends():
    # 28 layers, as of a 7B: the first and last eighth, and each third between.
    more = {0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 24, 25, 26, 27}
    for layer in range(28):
        for part in ("attn_v", "ffn_down"):
            found = k_quants.format_of(f"blk.{layer}.{part}.weight", "q4_k_m", 28, tied=True)
            assert found == (Format.Q6_K if layer in more else Format.Q4_K)
    assert k_quants.format_of("token_embd.weight", "q4_k_m", 28, tied=True) == Format.Q6_K
    assert k_quants.format_of("token_embd.weight", "q4_k_m", 28, tied=False) == Format.Q4_K
    assert k_quants.narrower(Format.Q4_K, 896) == Format.Q5_0
    assert k_quants.narrower(Format.Q6_K, 896) == Format.Q8_0
    assert k_quants.narrower(Format.Q6_K, 20) == Format.F16


@pytest.mark.parametrize(("kind", "error"), [(Format.Q4_K, 0.08), (Format.Q5_K, 0.04), (Format.Q6_K, 0.02)])
def test_weights_come_back_within_what_the_bits_hold(kind, error):
    from gguf import quants

    rows = np.random.default_rng(3).normal(size=(64, 512)).astype(np.float32)
    back = quants.dequantize(k_quants.quantize(rows, kind), kind)
    assert np.sqrt(np.mean((back - rows) ** 2) / np.mean(rows**2)) < error


def test_a_missing_library_is_named_before_anything_is_written(runs, tmp_path, monkeypatch):
    k_quants.library.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EliteError, match="needs llama"):
        export(runs("qwen3"), "gguf", tmp_path / "none", "q4_k_m")
    assert not (tmp_path / "none").exists()


def untouched(run, folder):
    """A copy of a run whose adapter changes nothing: its export is the base."""
    copy = RunDirectory(shutil.copytree(run.path, folder / run.path.name))
    file = copy.adapter_path / "adapter_model.safetensors"
    save_file({name: tensor * ("lora_A" in name) for name, tensor in load_file(file).items()}, file)
    (copy.adapter_path / atomic_dir.MANIFEST).unlink()
    return copy


@pytest.mark.parametrize("case", ["qwen2, tied", "llama", "phi3"])
def test_an_adapter_is_added_to_its_base_as_it_runs(case, runs, tmp_path):
    run = runs(case)
    merged = export(run, "merged", tmp_path / "merged", "f32", check=False).path
    base = next(export(untouched(run, tmp_path), "gguf", tmp_path / "base", "f32", check=False).path.glob("*.gguf"))
    written = export(run, "gguf-adapter", tmp_path / "lora")
    assert set(written.files) == {"tiny-lora.gguf", "README.md"}
    ids = PreTrainedTokenizerFast.from_pretrained(merged)(TEXT)["input_ids"]
    expected = chances(merged, ids)
    with llama_cpp(base, VOCABULARY) as ask:
        assert np.abs(ask(ids) - expected).max() > 0.5  # what the adapter adds
    with llama_cpp(base, VOCABULARY, written.path / "tiny-lora.gguf") as ask:
        np.testing.assert_allclose(ask(ids), expected, atol=0.05)


def greedy(model, ids, count):
    """Most likely tokens one after the other, by plain transformers."""
    ids = torch.tensor([ids])
    with torch.no_grad():
        for _ in range(count):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    return ids[0, -count:].tolist()


def test_its_server_switches_an_adapter_on_and_off(runs, tmp_path):
    run = runs("qwen2, tied")
    base = export(run, "gguf-base", tmp_path / "base", "f32", check=True)
    assert base.difference.relative < 1e-4
    adapter = export(run, "gguf-adapter", tmp_path / "lora").path / "tiny-lora.gguf"
    folder = Path(run.load_config().model.name)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(folder)(TEXT)["input_ids"]
    expected = {0.0: greedy(plain, ids, 12)}
    expected[1.0] = greedy(PeftModel.from_pretrained(plain, run.adapter_path).eval(), ids, 12)
    assert expected[0.0] != expected[1.0]
    body = {"prompt": ids, "n_predict": 12, "temperature": 0, "ignore_eos": True, "return_tokens": True}
    with llama_server(base.path / "base-f32.gguf", adapter) as ask:
        [listed] = ask("/lora-adapters")
        assert (listed["path"], listed["scale"]) == (str(adapter), 1.0)
        for scale in (1.0, 0.0, 1.0):
            ask("/lora-adapters", [{"id": listed["id"], "scale": scale}])
            # After a switch, the server goes on with what it has cached of a prompt under the other scale.
            assert ask("/completion", {**body, "cache_prompt": False})["tokens"] == expected[scale]
        for scale in (0.0, 1.0, 0.0):  # a request that names its own scale empties that cache
            assert ask("/completion", {**body, "lora": [{"id": 0, "scale": scale}]})["tokens"] == expected[scale]


@pytest.mark.parametrize("lora", [{"dora": True}, {"targets": ["q_proj", "lm_head"]}])
def test_an_adapter_that_llama_cpp_cannot_add_is_refused(lora, tokenizers, tmp_path):
    base = save_base(tmp_path / "base", "qwen2", tokenizers["qwen2"], tied=True)
    run = finished_run(tmp_path / "out", base, lora=lora)
    with pytest.raises(EliteError, match="--to gguf"):
        export(run, "gguf-adapter", tmp_path / "lora")
    assert not (tmp_path / "lora").exists()


@pytest.mark.parametrize("ignores", [False, True])
@pytest.mark.parametrize(("name", "family"), [("qwen2", "qwen2"), ("llama-bpe", "llama")])
def test_whole_words_are_refused_where_it_would_encode_them_otherwise(
    name, family, ignores, tokenizers, tmp_path, monkeypatch
):
    stored = json.loads(tokenizers[name].to_str())
    model = stored["model"]
    # The longest word stays in the vocabulary, but no merges make it.
    word = max((text for text in model["vocab"] if text.isascii() and text.isalpha()), key=len)
    model["merges"] = [pair for pair in model["merges"] if "".join(pair) != word]
    model["ignore_merges"] = ignores
    tokenizer = Tokenizer.from_str(json.dumps(stored))
    run = finished_run(tmp_path / "out", save_base(tmp_path / "base", family, tokenizer, **WIDE))
    refusal = None
    try:
        export(run, "gguf", tmp_path / "checked", "f32", check=False)
    except EliteError as error:
        refusal = error
    monkeypatch.setattr(gguf_tokenizer, "_check_whole_words", lambda *_: None)
    written = export(run, "gguf", tmp_path / "any", "f32", check=False)
    with llama_server(next(written.path.glob("*.gguf"))) as ask:
        told = ask("/tokenize", {"content": word, "add_special": False})["tokens"]
    assert (refusal is not None) == (told != tokenizer.encode(word, add_special_tokens=False).ids)
    assert (refusal is not None) == (ignores != (name == "llama-bpe"))
    if refusal is not None:
        assert refusal.code == "model-family-unsupported"
        assert word in refusal.message
