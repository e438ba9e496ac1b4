"""Turns multi-head attention into grouped-query attention by pooling key and value heads (GQA, arXiv 2305.13245)."""

from __future__ import annotations

import copy
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import EliteError
from engine.errors.model import MODEL_FAMILY_UNSUPPORTED
from engine.models.layer_settings import values_of_layers
from engine.models.layers import decoder_layers

_POOLED = ("k_proj", "v_proj")


def pool_key_value_heads(model: Any, kv_heads: int) -> None:
    """Replaces each group of key and value heads by their mean. This is approximate; training must recover the loss.

    Args:
        model: A causal language model with as many key heads as query heads and unquantised, separate projections.
        kv_heads: Heads to keep, a divisor of the present number.

    Raises:
        EliteError: MODEL_FAMILY_UNSUPPORTED when the model's shapes do not allow it.
    """
    config = model.config
    heads, by_layer = config.num_attention_heads, set(values_of_layers(config, "num_key_value_heads"))
    if len(by_layer) > 1:
        raise _refusal(config, "its layers have different numbers of key heads", "a model with one number of them")
    present = by_layer.pop() or heads
    if present != heads or kv_heads >= heads or heads % kv_heads:
        raise _refusal(
            config,
            f"{present} key heads for {heads} query heads cannot be pooled to {kv_heads}",
            "a model with as many of both, and a divisor of them",
        )
    layers: list[Any] = [getattr(layer, "self_attn", None) for layer in decoder_layers(model)]
    if None in layers:
        raise _refusal(config, "not all of its layers have a self_attn", "a model with one in every layer")
    for attention, name in product(layers, _POOLED):
        if type(getattr(attention, name, None)) is not nn.Linear:
            raise _refusal(config, f"its layers have no unquantised {name}", "a model with one, in 16 bits")
    _refuse_other_shapes(model, kv_heads)
    for attention in layers:
        for name in _POOLED:
            setattr(attention, name, _pooled(getattr(attention, name), heads, kv_heads))
        for name in ("num_key_value_heads", "num_kv_heads"):
            if hasattr(attention, name):
                setattr(attention, name, kv_heads)
        attention.num_key_value_groups = heads // kv_heads
    config.num_key_value_heads = kv_heads


def _refuse_other_shapes(model: Any, kv_heads: int) -> None:
    """Refuses attention that has more than its projections by key head, such as OLMo 2's norm of all keys together.

    Raises:
        EliteError: MODEL_FAMILY_UNSUPPORTED.
    """
    config = copy.deepcopy(model.config)
    config.num_key_value_heads = kv_heads
    with torch.device("meta"):
        pooled = type(model)(config)
    for layer, wanted in zip(decoder_layers(model), decoder_layers(pooled), strict=True):
        shapes = {name: weight.shape for name, weight in wanted.self_attn.named_parameters()}
        for name, weight in layer.self_attn.named_parameters():
            if name.partition(".")[0] not in _POOLED and shapes.pop(name, None) != weight.shape:
                raise _refusal(config, f"its {name} has weights for each key head", "a model without them")


def _refusal(config: Any, problem: str, supported: str) -> EliteError:
    return MODEL_FAMILY_UNSUPPORTED(
        family=config.model_type, feature="pooling of key and value heads", problem=problem, supported=supported
    )


def _pooled(projection: nn.Linear, heads: int, kept: int) -> nn.Linear:
    """Averages the neighbouring heads of a projection that a group of query heads will share."""

    def pool(weight: Tensor) -> nn.Parameter:
        return nn.Parameter(pool_heads(weight.detach(), heads, kept), requires_grad=False)

    with torch.device("meta"):
        made = nn.Linear(projection.in_features, projection.out_features // heads * kept, bias=False)
    made.weight = pool(projection.weight)
    made.bias = None if projection.bias is None else pool(projection.bias)
    return made


def pool_heads(weight: Tensor, heads: int, kept: int) -> Tensor:
    """Averages groups of neighbouring heads. Shape (heads · head_dim, ...) to (kept · head_dim, ...)."""
    size = weight.shape[0] // heads
    mean = weight.float().view(kept, heads // kept, size, -1).mean(1)
    return mean.reshape(kept * size, *weight.shape[1:]).to(weight.dtype)
