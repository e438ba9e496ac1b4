"""GGUF files of families beyond the first five, read back tensor by tensor by the gguf package and by transformers."""

from __future__ import annotations

import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from support.exports import finished_run
from support.families import save_family
from transformers import AutoModelForCausalLM

from engine import cli

# Names of llama.cpp (gguf-py/gguf/constants.py) → of transformers, by hand.
OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
}
MLP = {
    "starcoder2": {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
    "qwen3_moe": {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm", "ffn_gate_inp": "mlp.gate"},
}
NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
}
GATED = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
MLP |= {
    "gemma3_text": {**GATED, **NORMS, "ffn_norm": "pre_feedforward_layernorm"},
    "granite": GATED,
    "olmo2": {**GATED, **NORMS},
}
METADATA = {
    "granite": {"embedding_scale": 12.0, "logit_scale": 8.0, "residual_scale": 0.22, "attention.scale": 0.0625},
    "gemma3_text": {"attention.sliding_window": 20, "attention.key_length": 16, "rope.freq_base": 1e6},
}
CASES = {
    "starcoder2": {"sliding_window": None},
    "qwen3_moe": {"decoder_sparse_step": 1},
    "gemma3_text": {
        "num_hidden_layers": 6,
        "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
        "query_pre_attn_scalar": 16,
    },
    "granite": {},
    "olmo2": {},
}
EXPERTS = {
    "ffn_gate_exps": ("gate_up_proj", 0),
    "ffn_up_exps": ("gate_up_proj", 1),
    "ffn_down_exps": ("down_proj", None),
}


def _wanted(name, family, state):
    """The tensor of the merged model that a GGUF name stands for."""
    stem, _, kind = name.rpartition(".")
    if stem in OUTER:
        return state[f"{OUTER[stem]}.{kind}"]
    _, layer, part = stem.split(".")
    if part in EXPERTS:
        both, half = EXPERTS[part]
        stacked = state[f"model.layers.{layer}.mlp.experts.{both}"]
        return stacked if half is None else stacked.chunk(2, dim=1)[half]
    found = state[f"model.layers.{layer}.{ {**ATTENTION, **MLP[family]}[part] }.{kind}"]
    if family == "granite" and part in ("attn_q", "attn_k"):  # neighbours rotate together there, not halves of a head
        heads = 4 if part == "attn_q" else 2
        return found.reshape(heads, 2, -1, found.shape[1]).transpose(1, 2).reshape(found.shape)
    return found


@pytest.mark.parametrize("family", CASES)
def test_every_tensor_comes_back(family, tmp_path):
    path = save_family(tmp_path / "model", family, **CASES[family])
    run = finished_run(tmp_path / "out", path)
    for target in ("merged", "gguf"):
        more = ["--dtype", "f32"]
        assert cli.main(["export", str(run.path), "--to", target, "--output", str(tmp_path / target), *more]) == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    state = merged.state_dict()
    [file] = (tmp_path / "gguf").glob("*.gguf")
    reader = GGUFReader(file)
    seen = set()
    for tensor in reader.tensors:
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        want = _wanted(tensor.name, family, state)
        if family == "gemma3_text" and "norm" in tensor.name:
            want = want + 1  # which its norms add
        assert torch.equal(values.reshape(want.shape), want), tensor.name
        seen.add(tensor.name)
    layers = merged.config.num_hidden_layers
    assert {f"blk.{layer}.attn_q.weight" for layer in range(layers)} <= seen
    described = {key.partition(".")[2]: field.contents() for key, field in reader.fields.items()}
    assert {key: described[key] for key in METADATA.get(family, {})} == pytest.approx(METADATA.get(family, {}))
    if family in ("granite", "olmo2"):  # which transformers does not read
        return
    read = AutoModelForCausalLM.from_pretrained(
        tmp_path / "gguf", gguf_file=file.name, config=merged.config, dtype=torch.float32
    )
    ids = torch.arange(20, 80)[None]
    wanted = merged.eval()(input_ids=ids, use_cache=False).logits
    assert torch.allclose(read.eval()(input_ids=ids, use_cache=False).logits, wanted, atol=1e-4)


GEMMA = ["sliding_attention"] * 5 + ["full_attention"]


@pytest.mark.parametrize(
    ("family", "changes", "says"),
    [
        ("starcoder2", {"sliding_window": 33}, "window"),
        ("starcoder2", {"sliding_window": None, "use_bias": False}, "biases"),
        ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, "every layer"),
        ("exaone4", {}, "not known here"),
        ("gemma3_text", {}, "every 6th"),
        ("gemma3_text", {"num_hidden_layers": 6, "layer_types": GEMMA}, "divided by the root of 16"),
        ("olmo2", {"attention_bias": True}, "biases"),
        ("smollm3", {"no_rope_layers": [1, 0, 1, 1]}, "every 4th"),
        ("seed_oss", {"attention_out_bias": True}, "bias of its output"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(family, changes, says, tmp_path, capsys):
    run = finished_run(tmp_path / "out", save_family(tmp_path / "model", family, **changes))
    assert cli.main(["export", str(run.path), "--to", "gguf", "--output", str(tmp_path / "gguf")]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "gguf").exists()
