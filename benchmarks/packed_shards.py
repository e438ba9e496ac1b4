"""Random models in folders of shards, for benchmarks/packed_gpu.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_shards(folder: Path, spec: Any, device: Any) -> None:
    """Writes a random Qwen2 in bf16 shards, one layer at a time, with the demo's tokenizer."""
    import shutil

    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    from engine.assets import asset
    from engine.models.random import _config

    config = _config(spec, spec.layers)
    config.max_position_embeddings = 32768
    config.dtype = torch.bfloat16
    config.architectures = ["Qwen2ForCausalLM"]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    folder.mkdir()
    config.save_pretrained(folder)
    shards: dict[str, dict[str, Any]] = {}
    tied = spec.tied_embeddings
    for name, value in model.state_dict().items():
        if not (tied and name == "lm_head.weight"):
            part = name.split(".")[2] if name.startswith("model.layers.") else "outside"
            shards.setdefault(part, {})[name] = value
    torch.manual_seed(0)
    where = {}
    for number, values in enumerate(shards.values()):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        made = {}
        for name, value in values.items():
            empty = torch.empty(value.shape, dtype=torch.bfloat16, device=device)
            made[name] = (empty.fill_(1.0) if value.ndim == 1 else empty.normal_(std=0.02)).cpu()
        save_file(made, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(made, file)
    index = {"metadata": {"total_size": 0}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(asset("demo-model", name), folder / name)
