"""Writes the embedded model's first weights, drawn from a seed, as a directory that `engine train` takes.

    python scripts/embedded_init.py --out out/embedded-init [--tokenizer out/corpus/tokenizer] [--hidden 384 --layers 6]

Six wide layers rather than a dozen narrow ones: a GPU that trains a model this small waits for launches and for
memory, of which there are as many for a narrow layer as for a wide one. RoPE's base of a million leaves room for
contexts of 32K and more; `max_position_embeddings` is what recipes/embedded.yaml trains, and longer ones are stretched.
"""

from __future__ import annotations

import argparse
import math
import shutil
from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

ROOT = Path(__file__).parents[1]
HEAD = 64
CONTEXT = 8192


def shape(hidden: int, layers: int, vocabulary: int, end: int) -> Qwen2Config:
    """A Qwen2 architecture with three query heads to a key head and an MLP three times as wide."""
    return Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // HEAD,
        num_key_value_heads=hidden // HEAD // 3,
        max_position_embeddings=CONTEXT,
        max_window_layers=layers,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
    )


@torch.no_grad()
def first_weights(config: Qwen2Config, seed: int) -> Qwen2ForCausalLM:
    """Deviation 0.02, and less by sqrt(2·layers) where a layer writes into the residual stream (GPT-2)."""
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter.div_(math.sqrt(2 * config.num_hidden_layers))
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--tokenizer", type=Path, default=ROOT / "assets" / "demo-model", help="folder of tokenizer.json"
    )
    parser.add_argument("--hidden", type=int, default=384, help=f"a multiple of {3 * HEAD}")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.hidden % (3 * HEAD):
        raise SystemExit(f"--hidden {options.hidden} is no multiple of {3 * HEAD}")
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(options.tokenizer / "tokenizer.json"))
    vocabulary, end = tokenizer.get_vocab_size(), tokenizer.token_to_id("<|endoftext|>")
    model = first_weights(shape(options.hidden, options.layers, vocabulary, end), options.seed)
    model.save_pretrained(options.out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(options.tokenizer / name, options.out / name)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{options.out}: {count:,} parameters, {2 * count / 1e6:.1f} MB in bf16")


if __name__ == "__main__":
    main()
