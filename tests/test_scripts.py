"""Scripts outside the package: what they import exists, and the model that two of them convert is the file's."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import pretrained_parts, tool_calls

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted([*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "scripts").glob("*.py")])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_what_a_script_imports_exists(script):
    absent = [
        f"{node.module}.{alias.name}, line {node.lineno}"
        for node in ast.walk(ast.parse(script.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("engine", "elite_tui")
        for alias in node.names
        if not hasattr(importlib.import_module(node.module), alias.name)
        and importlib.util.find_spec(f"{node.module}.{alias.name}") is None
    ]
    assert absent == []


HEADS, KV_HEADS, WIDTH, INNER, WORDS = 4, 2, 64, 96, 72


@pytest.fixture
def llama(tmp_path):
    """A GGUF file of a small Llama: matrices in Q4_1 and embeddings in Q8_0, as SmolLM2's, of random values."""
    gguf = pytest.importorskip("gguf")
    draw = np.random.default_rng(3)
    path = tmp_path / "llama.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(2)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(5000.0)
    writer.add_vocab_size(WORDS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    letters = [chr(number) for number in range(33, 33 + WORDS - 6)]
    words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters, "ab", "yy", "zz"]
    writer.add_token_list(words)
    writer.add_token_types([3, 3, 3, *[1] * (WORDS - 3)])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{{ messages }}")

    def add(name, shape, kind):
        values = draw.normal(size=shape).astype(np.float32)
        writer.add_tensor(name, gguf.quants.quantize(values, kind) if kind else values, raw_dtype=kind)

    q4, q8 = gguf.GGMLQuantizationType.Q4_1, gguf.GGMLQuantizationType.Q8_0
    add("token_embd.weight", (WORDS, WIDTH), q8)
    add("output_norm.weight", (WIDTH,), None)
    for layer in range(2):
        add(f"blk.{layer}.attn_q.weight", (WIDTH, WIDTH), q4)
        add(f"blk.{layer}.attn_k.weight", (WIDTH // 2, WIDTH), q4)
        add(f"blk.{layer}.attn_v.weight", (WIDTH // 2, WIDTH), q4)
        add(f"blk.{layer}.attn_output.weight", (WIDTH, WIDTH), q4)
        add(f"blk.{layer}.ffn_gate.weight", (INNER, WIDTH), q4)
        add(f"blk.{layer}.ffn_up.weight", (INNER, WIDTH), q4)
        add(f"blk.{layer}.ffn_down.weight", (WIDTH, INNER), q4)
        add(f"blk.{layer}.attn_norm.weight", (WIDTH,), None)
        add(f"blk.{layer}.ffn_norm.weight", (WIDTH,), None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_converted_file_is_what_transformers_reads_of_it(llama, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    text = tmp_path / "text"
    text.mkdir()
    (text / "some.py").write_text("abc ABC 0123")
    tool_calls.convert(str(llama), tmp_path / "whole")
    pretrained_parts.split(llama, tmp_path / "parts", 2, [text])
    pretrained_parts.join(tmp_path / "parts", tmp_path / "joined")
    wanted = AutoModelForCausalLM.from_pretrained(llama.parent, gguf_file=llama.name).bfloat16().state_dict()
    whole, joined = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("whole", "joined"))
    for name, values in wanted.items():
        assert whole.state_dict()[name].equal(values), name
        if "embed" not in name and "lm_head" not in name:
            assert joined.state_dict()[name].equal(values), name
    # All tokens but the last two are in the text, single bytes or control tokens: those two become their mean.
    found, exact = (model.model.embed_tokens.weight.detach().float() for model in (joined, whole))
    assert (found[:-2] - exact[:-2]).abs().max() < 0.5
    assert torch.allclose(found[-2:], exact[-2:].mean(0).expand(2, -1), atol=2e-2)
    for made in (whole, joined):
        assert made.config.rope_parameters["rope_theta"] == 5000.0
        assert made.config.rms_norm_eps == pytest.approx(1e-5)
        assert made.config.max_position_embeddings == 256
    for name in ("whole", "joined"):
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / name)
        assert tokenizer("<|im_start|>ab12").input_ids == [1, WORDS - 3, *(3 + ord(digit) - 33 for digit in "12")]
        assert tokenizer.chat_template == "{{ messages }}"
