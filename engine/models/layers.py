"""Finds the decoder layers of a causal language model, whatever its family calls the list of them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

from engine.errors.model import MODEL_FAMILY_UNSUPPORTED


def layer_list(model: Any) -> tuple[nn.Module, str]:
    """The module that holds a model's decoder layers, and the name of its list.

    Args:
        model: A transformers causal language model, without an adapter around it.

    Raises:
        EliteError: MODEL_FAMILY_UNSUPPORTED, where no one list holds as many layers as the configuration says.
    """
    decoder, count = model.get_decoder(), model.config.num_hidden_layers
    found = [
        (parent, name)
        for parent in decoder.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == count
    ]
    own = [name for parent, name in found if parent is decoder]
    if "layers" in own:
        return decoder, "layers"
    if len(own) == 1:
        return decoder, own[0]
    if len(found) == 1:
        return found[0]
    raise MODEL_FAMILY_UNSUPPORTED(
        family=model.config.model_type,
        feature="layer by layer",
        problem=f"{len(found)} lists of its modules have {count} entries",
        supported="a decoder with one list of layers",
    )


def decoder_layers(model: Any) -> list[Any]:
    """The decoder layers of a causal language model, from the first; errors of `layer_list`."""
    parent, name = layer_list(model)
    return list(getattr(parent, name))


def expert_weights(layer: nn.Module) -> list[nn.Parameter]:
    """Lists the stacked weights of a layer's experts: matrices with one more dimension, which convolutions have too."""
    convolutions = [part for part in layer.modules() if isinstance(part, nn.Conv1d)]
    apart = {id(p) for part in convolutions for p in part.parameters()}
    return [p for p in layer.parameters() if p.ndim == 3 and id(p) not in apart]


def has_attention(layer: nn.Module, apart: Collection[nn.Module] = ()) -> bool:
    """Tells whether a layer has an attention module, by its class; `apart` are modules that do not count."""
    return any("attention" in type(part).__name__.lower() and part not in apart for part in layer.modules())
