"""Builds models with a catalogue entry's shapes and random weights. Time and memory do not depend on the values."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from engine.models.expert_stacks import experts_modules, quantised_stack, stacks_of
from engine.models.experts import use_frozen_experts
from engine.models.layers import decoder_layers
from engine.models.placement import Placement
from engine.models.rope_tables import keep_tables_exact
from engine.models.spec import ModelSpec

_STANDARD_DEVIATION = 0.02


def random_model(
    spec: ModelSpec, placement: Placement, *, layers: int | None = None, weights_device: torch.device | None = None
) -> PreTrainedModel:
    """Builds a frozen causal language model of `spec`'s shapes.

    Args:
        spec: Shapes.
        placement: Device and dtype; nf4 quantises the decoder layers' linears and experts with double quantisation,
            matrix by matrix, so that no layer exists in 16 bits.
        layers: Decoder layers, if not all.
        weights_device: Final device of the weights, if not the placement's.
    """
    return random_model_of(_config(spec, layers or spec.layers), placement, weights_device)


def random_model_of(config: Any, placement: Placement, weights_device: torch.device | None = None) -> PreTrainedModel:
    """Builds a frozen causal language model of a transformers configuration; arguments as in `random_model`."""
    home = weights_device or placement.device
    with init_empty_weights(include_buffers=False):  # Gemma's scales are buffers, whose values matter
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=placement.dtype)
    decoder: Any = model.get_decoder()
    if placement.precision == "nf4":
        for layer in decoder_layers(model):
            _quantise_linears(layer, placement, home)
            _quantise_experts(layer, placement, home)
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                drawn = _draw(parameter, placement).to(home)
                setattr(module, name, nn.Parameter(drawn, requires_grad=False))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.to(home))
    decoder.rotary_emb = type(decoder.rotary_emb)(config).to(home)  # its tables were on the meta device
    keep_tables_exact(model)
    model.tie_weights()
    model.config.use_cache = False
    model.requires_grad_(requires_grad=False)
    return model.eval()


def _config(spec: ModelSpec, layers: int) -> Any:
    if spec.settings:
        longest = max(spec.max_context, 2**22)
        changed = {"num_hidden_layers": layers, "max_position_embeddings": longest}
        own = {key: list(value)[:layers] if isinstance(value, tuple) else value for key, value in spec.settings}
        if layers < spec.layers and "num_kv_shared_layers" in own:
            changed["num_kv_shared_layers"] = 0  # the layers that lend their keys and values are not among the first
        return AutoConfig.for_model(spec.family, **{**own, **changed})
    return AutoConfig.for_model(
        spec.family,
        vocab_size=spec.vocab_size,
        hidden_size=spec.hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        intermediate_size=spec.intermediate_size,
        tie_word_embeddings=spec.tied_embeddings,
        max_position_embeddings=max(spec.max_context, 2**22),
        **_experts(spec),
        **_windows(spec, layers),
    )


def _windows(spec: ModelSpec, layers: int) -> dict[str, Any]:
    """Returns the window keys, which every model needs because some families have a window by default."""
    found: dict[str, Any] = {"sliding_window": spec.sliding_window}
    if spec.family.startswith("qwen"):  # Qwen's window has a switch and applies above the first max_window_layers
        found |= {"use_sliding_window": spec.windowed_layers > 0}
        found |= {"max_window_layers": min(spec.full_attention_layers, layers)}
    return found


def _experts(spec: ModelSpec) -> dict[str, Any]:
    """Returns the expert keys of families with experts; none for others."""
    if not spec.sparse_layers:
        return {}
    return {
        "num_experts": spec.experts,
        "num_local_experts": spec.experts,
        "num_experts_per_tok": spec.experts_per_token,
        "moe_intermediate_size": spec.expert_size,
    }


def _draw(like: torch.Tensor, placement: Placement) -> torch.Tensor:
    """Draws random values of a parameter's shape on the compute device; a CPU would need minutes for 7 billion."""
    made = torch.empty(like.shape, dtype=placement.dtype, device=placement.device)
    return made.fill_(1.0) if like.ndim == 1 else made.normal_(std=_STANDARD_DEVIATION)


def _quantise_linears(layer: nn.Module, placement: Placement, home: torch.device) -> None:
    import bitsandbytes as bnb

    for parent in list(layer.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is not nn.Linear:
                continue
            biased = child.bias is not None
            with torch.device("meta"):  # a CPU would need minutes to draw what is replaced at once
                packed = bnb.nn.Linear4bit(
                    child.in_features, child.out_features, bias=False, compute_dtype=placement.dtype, quant_type="nf4"
                )
            packed.weight = bnb.nn.Params4bit(
                _draw(child.weight, placement), requires_grad=False, quant_type="nf4", compress_statistics=True
            )
            packed.bias = nn.Parameter(_draw(child.bias, placement), requires_grad=False) if biased else None
            setattr(parent, name, packed.to(placement.device).to(home))


def _quantise_experts(layer: nn.Module, placement: Placement, home: torch.device) -> None:
    for module, _ in list(experts_modules(layer)):
        for name, stack in stacks_of(module).items():
            drawn = (_draw(expert, placement) for expert in stack)
            setattr(module, name, quantised_stack(drawn, tuple(stack.shape), placement.dtype).to(home))
        use_frozen_experts(module)
