"""Reads the shapes of a decoder from its own modules, for plans of families that no table describes."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from engine.models.families import setting_refusals
from engine.models.layers import decoder_layers
from engine.models.rope import fixed_rope_context, rope_type
from engine.models.spec import ModelSpec

_FUSED = ("qkv_proj", "query_key_value", "W_pack", "c_attn", "Wqkv")


class ShapeUnknownError(Exception):
    """A plan would count the model wrongly. The message says what."""


def observed_shape(config: Any) -> dict[str, Any]:
    """Returns the fields of a ModelSpec that describe the architecture of a configuration.

    Raises:
        ShapeUnknownError: they do not give the number of parameters that the model has.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=False)
    layers = decoder_layers(model)
    try:
        shape = _shape(config, model, layers)
        spec = ModelSpec(name="", family=config.model_type, licence="", **shape)
        counted = (spec.parameters, spec.decoder_parameters, spec.layer_parameters)
    except (AttributeError, TypeError, ValueError, StopIteration, ZeroDivisionError) as error:
        raise ShapeUnknownError(f"its layers are of another build ({error})") from error
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in layers]
    found = (sum(p.numel() for p in model.parameters()), sum(sizes), max(sizes))
    if counted != found:
        raise ShapeUnknownError(f"its shapes are not known: of {found[0]:,} parameters {counted[0]:,} are counted")
    return shape


def _shape(config: Any, model: Any, layers: list[Any]) -> dict[str, Any]:
    heads, hidden = config.num_attention_heads, config.hidden_size
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or hidden // heads
    dense = min(layers, key=lambda layer: sum(p.ndim > 2 for p in layer.parameters()))
    linears = {name.rpartition(".")[2]: part for name, part in dense.named_modules() if isinstance(part, nn.Linear)}
    names = list(linears)
    fused = next((name for name in _FUSED if name in names), "")
    query = linears[fused or "q_proj"]
    output = next(name for name in names if name in ("o_proj", "dense", "out_proj", "c_proj"))
    rest = [name for name in names if name not in (fused, "q_proj", "k_proj", "v_proj", output)]
    fused_mlp = "gate_up_proj" in rest
    down = next((name for name in rest if linears[name].out_features == hidden and name != "gate"), "down_proj")
    up = next((name for name in rest if name not in (down, "gate_proj", "gate_up_proj")), "up_proj")
    norms = {name: p for name, p in dense.named_parameters() if p.ndim == 1 and "norm" in name.lower()}
    of_heads = [p.numel() for p in norms.values() if p.numel() != hidden]
    whole = [name for name, p in norms.items() if p.numel() == hidden]
    norm_bias = any(name.endswith("bias") for name in whole)
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or []
    windowed = bool(window) and "sliding_attention" in kinds
    settings = config.to_dict()
    shape: dict[str, Any] = {
        "hidden_size": hidden,
        "layers": len(layers),
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": linears[down].in_features if down in linears else config.intermediate_size,
        "vocab_size": config.vocab_size,
        "tied_embeddings": model.get_output_embeddings().weight is model.get_input_embeddings().weight,
        "max_context": int(config.max_position_embeddings),
        "fixed_rope_context": fixed_rope_context(settings),
        "rope_type": rope_type(settings),
        "takes_yarn": False,
        "not_streamed": setting_refusals(settings).get("streamed"),
        "sliding_window": window if windowed else None,
        "full_attention_layers": kinds.count("full_attention") if windowed else len(layers),
        "gated_mlp": fused_mlp or "gate_proj" in rest,
        "attention_bias": query.bias is not None,
        "output_bias": linears[output].bias is not None,
        "mlp_bias": down in linears and linears[down].bias is not None,
        "head_bias": getattr(model.get_output_embeddings(), "bias", None) is not None,
        "norm_bias": norm_bias,
        "norms_per_layer": len(whole) // (1 + norm_bias),
        "qk_norm": bool(of_heads),
        "qk_norm_of_all_heads": sum(of_heads) == (heads + kv_heads) * head_dim * (1 + norm_bias),
        "fused_projections": bool(fused) and fused_mlp,
        "fused_mlp": fused_mlp and not fused,
        "linear_names": (output, up, down),
    }
    return shape | _experts(config, layers)


def _experts(config: Any, layers: list[Any]) -> dict[str, Any]:
    """Returns the fields of layers that hold experts."""
    stacked = [[p for p in layer.parameters() if p.ndim == 3] for layer in layers]
    sparse = [found for found in stacked if found]
    if not sparse:
        return {}
    down = min(sparse[0], key=lambda p: p.numel())
    return {
        "sparse_layers": len(sparse),
        "experts": down.shape[0],
        "experts_per_token": int(getattr(config, "num_experts_per_tok", 0) or config.moe_topk),
        "expert_size": down.numel() // down.shape[0] // config.hidden_size,
        "adapts_mlp": False,
    }
