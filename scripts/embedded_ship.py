"""Puts trained weights in the place of the embedded model: one file, its settings, and its hash in the card.

    python scripts/embedded_ship.py out/small [--into assets/demo-model]

The tokenizer's files stay: the weights were trained on its ids. Weights of another shape than the card's are refused
unless --shape is given, for `[demo]` in assets/models.toml and the documents name it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from pathlib import Path

from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[1]
MOST_BYTES = 30_000_000
"""Of the weights: they travel with every installation."""
SHAPE = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "max_position_embeddings",
    "rope_parameters",
    "tie_word_embeddings",
)


def ship(source: Path, target: Path, *, other_shape: bool = False) -> str:
    """Writes model.safetensors and config.json; returns the SHA-256 of the weights, in hex."""
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    before = json.loads((target / "config.json").read_text(encoding="utf-8"))
    changed = [name for name in SHAPE if config.get(name) != before.get(name)]
    if changed and not other_shape:
        raise SystemExit(f"{source}: {', '.join(changed)} differ from {target}; give --shape to change them there too")
    parts = sorted(source.glob("*.safetensors"))
    if not parts:
        raise SystemExit(f"{source}: no *.safetensors; train first (scripts/pretrain_small.py)")
    tensors = {name: tensor for part in parts for name, tensor in load_file(part).items()}
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if size > MOST_BYTES:
        raise SystemExit(f"{source}: {size:,} bytes of weights, more than {MOST_BYTES:,}; train a smaller shape")
    index = source / "model.safetensors.index.json"
    if index.is_file() and set(json.loads(index.read_text(encoding="utf-8"))["weight_map"]) != set(tensors):
        raise SystemExit(f"{source}: a part of the weights is missing; copy all files that {index.name} lists")
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (target / "model.safetensors").chmod(0o644)
    digest = hashlib.sha256((target / "model.safetensors").read_bytes()).hexdigest()
    card = target / "README.md"
    text = card.read_text(encoding="utf-8")
    card.write_text(re.sub(r"(of the weights:\s+`)[0-9a-f]{64}", rf"\g<1>{digest}", text), encoding="utf-8")
    return digest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder that scripts/pretrain_small.py wrote")
    parser.add_argument("--into", type=Path, default=ROOT / "assets" / "demo-model")
    parser.add_argument("--shape", action="store_true", help="take weights of another shape")
    options = parser.parse_args()
    digest = ship(options.source, options.into, other_shape=options.shape)
    print(f"{options.into / 'model.safetensors'}: sha256 {digest}")


if __name__ == "__main__":
    main()
