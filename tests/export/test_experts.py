"""Adapters on experts, merged into files that hold experts one by one or stacked, read back by other libraries."""

from __future__ import annotations

import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from support.exports import adapter_logits, finished_run, logits
from support.families import save_family
from transformers import AutoConfig, AutoModelForCausalLM

from engine import cli
from engine.errors import EliteError
from engine.export.merging import MergedWeights, read_updates
from engine.export.weights import StoredWeights
from engine.models.folder import open_folder
from engine.models.weight_map import map_weights

IDS = torch.arange(20, 80)[None]
LORA = {"targets": ["all-linear", "experts"], "rank": 6}
TINY = {
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_local_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_a_runs_experts_are_merged_one_by_one(family, tmp_path):
    run = finished_run(tmp_path / "out", save_family(tmp_path / "base", family), lora=LORA)
    expected = adapter_logits(run, IDS)
    command = ["export", str(run.path), "--to", "merged", "--dtype", "f32", "--output", str(tmp_path / "merged")]
    assert cli.main(command) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    torch.testing.assert_close(logits(model, IDS), expected, rtol=1e-4, atol=1e-4)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    moved = [name for name, p in model.named_parameters() if not torch.equal(p, plain.get_parameter(name))]
    assert any("gate_up_proj" in name for name in moved)
    assert any("experts.down_proj" in name for name in moved)


def test_a_gguf_file_holds_the_merged_experts(tmp_path):
    base = save_family(tmp_path / "base", "qwen3_moe", decoder_sparse_step=1)
    run = finished_run(tmp_path / "out", base, lora=LORA)
    for target in ("merged", "gguf"):
        command = ["export", str(run.path), "--to", target, "--dtype", "f32", "--output", str(tmp_path / target)]
        assert cli.main(command) == 0
    state = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).state_dict()
    before = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).state_dict()
    [file] = (tmp_path / "gguf").glob("*.gguf")
    tensors = {t.name: torch.from_numpy(dequantize(t.data, t.tensor_type).copy()) for t in GGUFReader(file).tensors}
    layers = sum(name.endswith("ffn_down_exps.weight") for name in tensors)
    assert layers == 4
    for layer in range(layers):
        both = state[f"model.layers.{layer}.mlp.experts.gate_up_proj"]
        wanted = {
            "gate": both.chunk(2, dim=1)[0],
            "up": both.chunk(2, dim=1)[1],
            "down": state[f"model.layers.{layer}.mlp.experts.down_proj"],
        }
        assert not torch.equal(both, before[f"model.layers.{layer}.mlp.experts.gate_up_proj"])
        for name, want in wanted.items():
            assert torch.equal(tensors[f"blk.{layer}.ffn_{name}_exps.weight"].view(want.shape), want)


def adapted(family, folder):
    """Saves a tiny model and PEFT's adapter on its experts; returns the logits with it."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **TINY), dtype=torch.float32)
    model.config._experts_implementation = "eager"
    model.save_pretrained(folder / "base")
    stacks = ["experts.gate_up_proj", "experts.down_proj"]
    config = LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj"], target_parameters=stacks, use_rslora=True)
    found = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)
    found.save_pretrained(folder / "adapter", save_embedding_layers=False)
    return logits(found, IDS)


@pytest.mark.parametrize("family", ["gpt_oss", "laguna", "mellum", "qwen2_moe", "qwen3_5_moe_text"])
def test_stacks_are_merged_as_they_are_stored(family, tmp_path):
    """GPT-OSS holds them the other way round, some families in one tensor, others expert by expert."""
    expected = adapted(family, tmp_path)
    config = AutoConfig.from_pretrained(tmp_path / "base")
    map_ = map_weights(open_folder(tmp_path / "base"), config)
    with StoredWeights(map_) as weights:
        merged = MergedWeights(weights, read_updates(tmp_path / "adapter", map_), tied=config.tie_word_embeddings)
        tensors = {name: merged.tensor(name).contiguous() for name in merged.names()}
    (tmp_path / "merged").mkdir()
    save_file(tensors, tmp_path / "merged" / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(tmp_path / "merged")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    read.config._experts_implementation = "eager"
    torch.testing.assert_close(logits(read, IDS), expected, rtol=1e-4, atol=1e-4)


def test_an_adapter_of_other_experts_is_refused(tmp_path):
    adapted("qwen2_moe", tmp_path)
    other = AutoConfig.for_model("qwen2_moe", **{**TINY, "moe_intermediate_size": 40})
    AutoModelForCausalLM.from_config(other).save_pretrained(tmp_path / "other")
    map_ = map_weights(open_folder(tmp_path / "other"), AutoConfig.from_pretrained(tmp_path / "other"))
    with pytest.raises(EliteError, match="no stack of"):
        read_updates(tmp_path / "adapter", map_)
