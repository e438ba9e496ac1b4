"""Reads the shapes of a decoder from its own modules, for plans of families that no table describes."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections import Counter
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from engine.models.adapter import linear_names
from engine.models.attended import AttendedShape, Use
from engine.models.expert_stacks import CHOSEN_EXPERTS, stacks_of
from engine.models.families import setting_refusals
from engine.models.layer_settings import largest_of_layers
from engine.models.layer_shapes import LayerKind, Linear
from engine.models.layers import decoder_layers, expert_weights
from engine.models.lm_head import WholeHead, split_head
from engine.models.rope import fixed_rope_context, rope_type
from engine.models.shared_kv import kv_owners
from engine.models.spec import as_spec
from engine.streaming.decoder import LAYER_INPUT
from engine.streaming.latent_attention import latent_attention
from engine.verify.observed_bytes import Attended, observed_bytes
from engine.verify.observed_recurrence import observed_recurrence


class ShapeUnknownError(Exception):
    """A plan would count the model wrongly. The message says what."""


def observed_shape(config: Any, *, adapts_mlp: bool) -> dict[str, Any]:
    """Returns the fields of a ModelSpec that describe the architecture of a configuration, in JSON's types.

    Args:
        config: transformers configuration of a causal language model.
        adapts_mlp: Whether adapters go on the linear layers of its MLPs.

    Raises:
        ShapeUnknownError: they do not give the number of parameters that the model has.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=False)
    layers = decoder_layers(model)
    try:
        shape = _shape(config, model, layers, adapts_mlp=adapts_mlp)
        spec = as_spec(shape, name="", family=config.model_type)
    except (AttributeError, TypeError, ValueError, ZeroDivisionError, RuntimeError, IndexError) as error:
        raise ShapeUnknownError(f"its layers are of another build ({error})") from error
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in layers]
    found = (sum(p.numel() for p in model.parameters()), sum(sizes), max(sizes))
    counted = (spec.parameters, spec.decoder_parameters, spec.layer_parameters)
    if counted != found:
        raise ShapeUnknownError(f"its shapes are not known: of {found[0]:,} parameters {counted[0]:,} are counted")
    return shape


def _shape(config: Any, model: Any, layers: list[nn.Module], *, adapts_mlp: bool) -> dict[str, Any]:
    targets = set().union(*(linear_names(layer, everything=adapts_mlp, family=config.model_type) for layer in layers))
    calls, counted = observed_bytes(config, sorted(targets))
    chosen = next((int(found) for name in CHOSEN_EXPERTS if (found := _first(getattr(config, name, None)))), 0)
    kinds = _kinds(layers, targets, chosen)
    heads = calls or [_unused_heads(config)]
    widest = max(heads, key=lambda call: call.heads * call.width)
    head_dim, value_dim = widest.width, widest.value_dim
    keys = max(call.kv_heads * call.width for call in heads)  # a layer of narrower heads may have more of them
    windows = [call.window for call in calls if call.window]
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    settings = config.to_dict()
    norms = [name for layer in layers for name, p in layer.named_parameters() if p.ndim == 1 and "norm" in name.lower()]
    hidden = int(embedding.shape[1])
    inner = [linear.inputs for kind in kinds for linear in kind.linears[1:] if linear.outputs == hidden]
    shape = {
        "hidden_size": hidden,
        "layers": len(layers),
        "heads": widest.heads,
        "kv_heads": -(-keys // head_dim),
        "head_dim": head_dim,
        "value_dim": None if value_dim == head_dim else value_dim,
        "latent": _latent(layers),
        "intermediate_size": max([*inner, hidden]),
        "vocab_size": int(embedding.shape[0]),
        "tied_embeddings": head.weight is embedding,
        "max_context": int(getattr(config, "max_position_embeddings", None) or _SHORT),
        "fixed_rope_context": fixed_rope_context(settings),
        "rope_type": rope_type(settings),
        "takes_yarn": False,
        "not_streamed": setting_refusals(settings).get("streamed"),
        "sliding_window": max(windows, default=None),
        "full_attention_layers": len(layers) - len(windows),
        "head_bias": getattr(head, "bias", None) is not None,
        "whole_head": isinstance(split_head(model)[1], WholeHead),
        "norm_bias": any(name.endswith("bias") for name in norms),
        "adapts_mlp": adapts_mlp,
        "kinds": [dataclasses.asdict(kind) for kind in kinds],
        "outside": sum(p.numel() for p in model.parameters()) - sum(kind.layers * kind.parameters for kind in kinds),
        "counted": [dataclasses.asdict(each) for each in counted],
    }
    recurrent = observed_recurrence(layers, hidden)
    shape["recurrent"] = None if recurrent is None else dataclasses.asdict(recurrent)
    shape |= _beside(config, layers, calls)
    return shape | _experts(layers, hidden, chosen)


def _beside(config: Any, layers: list[nn.Module], calls: list[Attended]) -> dict[str, Any]:
    """Returns the fields of what layers have in other shapes or numbers than those of most families."""
    shape: dict[str, Any] = {}
    owners = kv_owners(config)
    shares = any(owner is not None for owner in owners)
    widths = {dataclasses.replace(call, window=None) for call in calls}
    if shares or (len(widths) > 1 and _latent(layers) is None):
        if shares and len(calls) != len(layers):
            raise ShapeUnknownError("layers share keys and values, and some do not attend")
        uses: list[Use] = ["own"] * len(calls)
        for layer, owner in enumerate(owners if shares else ()):
            if owner is not None:
                uses[layer], uses[owner] = "borrowed", "lent"
        kinds = Counter(zip(calls, uses, strict=True))
        shape["attended"] = [_attended(call, use, count) for (call, use), count in kinds.items()]
    if cap := getattr(config, "attn_logit_softcapping", None):
        shape["softcap"] = float(cap)
    if streams := getattr(config, "altup_num_inputs", None):
        shape["streams"] = streams
    if LAYER_INPUT in inspect.signature(layers[0].forward).parameters:
        shape["layer_input"] = getattr(config, "hidden_size_per_layer_input", None) or 0
    return shape


def _attended(call: Attended, use: Use, layers: int) -> dict[str, Any]:
    return dataclasses.asdict(
        AttendedShape(
            layers=layers,
            heads=call.heads,
            kv_heads=call.kv_heads,
            key_dim=call.head_dim,
            value_dim=call.value_dim,
            window=call.window,
            use=use,
        )
    )


def _unused_heads(config: Any) -> Attended:
    """Returns the heads that a configuration names, for a model of which no layer attends."""
    heads = int(getattr(config, "num_attention_heads", None) or 1)
    width = largest_of_layers(config, "head_dim") or max(1, config.hidden_size // heads)
    kv_heads = largest_of_layers(config, "num_key_value_heads") or heads
    return Attended(heads=heads, kv_heads=kv_heads, head_dim=width, value_dim=width, window=None)


def _latent(layers: list[nn.Module]) -> dict[str, int] | None:
    """Returns what is stored of a token in place of keys and values; None where a layer stores those."""
    found: list[Any] = [latent_attention(layer) for layer in layers]
    if not found or None in found:
        return None
    rank, rotated = found[0].kv_lora_rank, found[0].qk_rope_head_dim
    expanded = found[0].num_heads * (found[0].qk_nope_head_dim + found[0].v_head_dim)
    return {"stored": rank + rotated, "rank": rank, "expanded": expanded}


_SHORT = 2048
"""Context of a configuration that names none."""


def _first(value: Any) -> Any:
    """Returns the first entry; some families give a list with an entry for each layer."""
    return value[0] if isinstance(value, (list, tuple)) and value else value


def _kinds(layers: list[nn.Module], targets: set[str], chosen: int) -> list[LayerKind]:
    """Lists the builds of layers, each with its number of layers."""
    found: dict[tuple[Any, ...], LayerKind] = {}
    for layer in layers:
        shapes = tuple((name, tuple(p.shape)) for name, p in layer.named_parameters())
        if shapes in found:
            found[shapes] = dataclasses.replace(found[shapes], layers=found[shapes].layers + 1)
        else:
            found[shapes] = _kind(layer, targets, chosen)
    return list(found.values())


def _kind(layer: nn.Module, targets: set[str], chosen: int) -> LayerKind:
    linears, inside = [], set()
    for name, part in layer.named_modules():
        if isinstance(part, (nn.Linear, Conv1D)):
            outputs, inputs = part.weight.shape if isinstance(part, nn.Linear) else reversed(part.weight.shape)
            last = name.rpartition(".")[2]
            biased = part.bias is not None
            linears.append(
                Linear(name=last, inputs=inputs, outputs=outputs, bias=biased, adapted=last in targets),
            )
            inside |= {id(p) for p in part.parameters(recurse=False)}
    rest = [p for p in layer.parameters() if id(p) not in inside]
    experts = expert_weights(layer)
    stacked = {id(p) for p in experts}
    count = max((p.shape[0] for p in experts), default=1)
    total = sum(p.numel() for p in experts)
    others = [p for p in rest if id(p) not in stacked]
    return LayerKind(
        layers=1,
        linears=tuple(linears),
        others=sum(p.numel() for p in others),
        matrices=sum(p.numel() for p in others if p.ndim == 2),
        experts=total,
        chosen_experts=total // count * min(chosen or count, count),
        experts_width=sum(
            p.shape[0] * (p.shape[1] + p.shape[2]) for part in layer.modules() for p in stacks_of(part).values()
        ),
        largest=max([p.numel() for p in layer.parameters()] + [linear.parameters for linear in linears]),
    )


def _experts(layers: list[nn.Module], hidden: int, chosen: int) -> dict[str, Any]:
    """Returns the fields of layers that hold experts."""
    stacked = [found for layer in layers if (found := expert_weights(layer))]
    if not stacked:
        return {}
    down = min(stacked[0], key=lambda p: p.numel())
    return {
        "sparse_layers": len(stacked),
        "experts": down.shape[0],
        "experts_per_token": min(chosen or down.shape[0], down.shape[0]),
        "expert_size": max(1, down.numel() // down.shape[0] // hidden),
    }
