"""Reads a GGUF file back into a model of transformers, for architectures that its own loader does not take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from engine.errors.export import EXPORT_DAMAGED
from engine.export.gguf_file import pairs_apart
from engine.models.families import gguf_names


def is_read_by_transformers(config: Any) -> bool:
    """Whether transformers' own loader takes the architecture of a configuration's files."""
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    known = {name.replace("_", "") for name in GGUF_SUPPORTED_ARCHITECTURES}  # qwen3_moe is qwen3moe in a file
    return gguf_names(config.model_type).architecture.replace("_", "") in known


def read_model(file: Path, config: Any) -> Any:
    """Builds a model of a configuration, in fp32, with the weights of a file.

    Raises:
        EliteError: EXPORT_DAMAGED, where a weight is missing or a tensor belongs to none.
    """
    import copy

    from gguf import MODEL_ARCH, GGUFReader, dequantize, get_tensor_name_map
    from transformers import AutoModelForCausalLM

    family = gguf_names(config.model_type)
    names = get_tensor_name_map(MODEL_ARCH[family.architecture.upper()], config.num_hidden_layers)
    tensors = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32)
    for name, parameter in model.named_parameters():
        tensor = tensors.pop(names.get_name(name, try_suffixes=(".weight", ".bias")) or "", None)
        if tensor is None:
            raise EXPORT_DAMAGED(path=file, problem=f"it has no tensor for {name}")
        value = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy()).reshape(parameter.shape)
        layer = name.rpartition(".")[0]
        if family.interleaved and layer.endswith("q_proj"):
            value = pairs_apart(value, config.num_attention_heads)
        elif family.interleaved and layer.endswith("k_proj"):
            value = pairs_apart(value, config.num_key_value_heads)
        if family.norm_offset and layer.endswith("norm"):
            value = value - family.norm_offset
        parameter.data = value
    if left := [name for name in tensors if not name.startswith("rope_")]:
        raise EXPORT_DAMAGED(path=file, problem=f"no weight of the model is its {left[0]}")
    return model
