"""Makes a small copy of a model's configuration: every kind of its layers, narrow, with the same flags.

Lengths shrink too (windows, the position at which a scale sets in): what depends on them shows within a hundred tokens.
Only counts and lengths change. Kinds, scales and switches are the model's own.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from engine.models.families import DROPOUTS
from engine.models.layer_settings import largest_of_layers
from engine.models.layers import decoder_layers
from engine.models.recurrent_kernels import serve
from engine.models.recurrent_mixers import mixer_names, recurrent_mixers
from engine.models.rope import fixed_rope_context

VOCABULARY = 97
POSITIONS = 512
"""Longer than any window of a proof."""
_LENGTH = 64
"""What is not longer than this shows within a proof."""
_WINDOW, _SOON = 20, 24
_HEADS = 4
_FEW_LAYERS, _MOST_LAYERS = 12, 64
_FURTHER = 6
"""Layers that are tried beyond those in which every kind occurs."""


class NotSmallError(Exception):
    """No small copy can stand for the model. The message says why."""


def small_config(config: Any) -> Any:
    """Returns the configuration of a small model with the same kinds of layers.

    Args:
        config: transformers configuration of a causal language model.

    Raises:
        NotSmallError: no copy was found whose layers are of the same kinds.
    """
    kinds = _kinds(_skeleton(config))
    problem: Exception = NotSmallError("the layers of a small copy are of other kinds than its own")
    for picked in _choices(kinds, getattr(config, "num_kv_shared_layers", None) or 0):
        small = type(config).from_dict(_Shrunk(config, picked).values)
        for name in DROPOUTS:
            if getattr(small, name, None):
                setattr(small, name, 0.0)
        try:
            found = _kinds(_skeleton(small))
        except Exception as error:
            problem = error
            continue
        if _pattern(found) == _pattern([kinds[layer] for layer in picked]):
            return small
    raise problem


def _choices(kinds: list[tuple[Any, ...]], sharing: int) -> Iterator[Sequence[int]]:
    """Yields layers that a copy may consist of, by their numbers.

    Args:
        kinds: Kind of each layer.
        sharing: Number of last layers that take keys and values of earlier ones.
    """
    layers = next(count for count in range(1, len(kinds) + 1) if len(set(kinds[:count])) == len(set(kinds)))
    layers = min(max(layers + 1, 3), len(kinds))
    # One of each kind, and two that share the same, where the first layers in which all occur are many: more layers
    # enlarge a rounding until a token takes another expert. Gemma 4 before transformers 5.23 has kinds of last layers.
    if sharing or layers > _FEW_LAYERS:
        own = len(kinds) - sharing
        yield [at for at, kind in enumerate(kinds) if kinds[:at].count(kind) < (1 if at < own else 2)]
    if layers > _MOST_LAYERS:
        raise NotSmallError(f"its kinds of layers are all there only in its first {layers}")
    # A family may give its last layer a kind of its own, so that a copy of one layer less or more is right.
    for count in (layers, layers - 1, *range(layers + 1, min(layers + _FURTHER, len(kinds)) + 1)):
        yield range(count)


def small_model(config: Any, dtype: torch.dtype, seed: int = 0) -> Any:
    """Builds a model of a small configuration.

    Every parameter is drawn, because errors hide in norms of one and biases of zero.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype, attn_implementation="eager")
        model.config._experts_implementation = "eager"  # the grouped product takes no fp64
        recurrent = bool(mixer_names(model))
        serve(mixer for of_layer in recurrent_mixers(decoder_layers(model)) for mixer in of_layer)
        with torch.no_grad():
            for parameter in model.parameters():
                if recurrent:
                    parameter.data = parameter.data.to(dtype)  # some are fp32 in any model
                if parameter.ndim == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
                else:
                    parameter.normal_(std=1.5 * parameter.shape[-1] ** -0.5)
            kept = model.state_dict()
            for name, buffer in model.named_buffers():
                if name in kept and buffer.is_floating_point():
                    buffer.add_(0.1 * torch.randn_like(buffer))
    model.config.use_cache = False
    return model


def _skeleton(config: Any) -> Any:
    """Builds the model without numbers."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=False)


def _kinds(model: Any) -> list[tuple[Any, ...]]:
    """Describes what each decoder layer is made of; two of a kind differ in their weights' values alone."""
    return [
        tuple((name, type(part).__name__, *_settings(part)) for name, part in layer.named_modules())
        for layer in decoder_layers(model)
    ]


def _settings(module: nn.Module) -> list[tuple[str, Any]]:
    own: list[tuple[str, Any]] = [(name, tuple(p.shape)) for name, p in module.named_parameters(recurse=False)]
    for name, value in sorted(vars(module).items()):
        numbers_it = name.startswith("_") or "idx" in name or "index" in name or name == "layer_id"
        if not numbers_it and (value is None or isinstance(value, (bool, int, float, str))):
            own.append((name, value))
    return own


def _pattern(kinds: list[tuple[Any, ...]]) -> list[int]:
    """Returns numbers each layer's kind, counted from the first."""
    return [kinds.index(kind) for kind in kinds]


class _Shrunk:
    """The values of a configuration with small counts and lengths."""

    def __init__(self, config: Any, picked: Sequence[int]) -> None:
        self._all, self._picked = config.num_hidden_layers, picked
        self._heads = config.num_attention_heads
        hidden, explicit = config.hidden_size, largest_of_layers(config, "head_dim")
        head_dim = explicit or hidden // self._heads
        self._hidden = {hidden: _HEADS * head_dim if head_dim * self._heads == hidden else 96}
        self._fixed_rope = fixed_rope_context(config.to_dict()) is not None
        names = getattr(config, "attribute_map", {})
        self._roles = {names.get(role, role): role for role in ("num_hidden_layers", "num_attention_heads")}
        widths = sorted(set(_widths(config.to_dict())), reverse=True)
        self._widths = {width: max(96 - 24 * place, 24) for place, width in enumerate(widths)}
        self.values = {name: self._of(name, value) for name, value in config.to_dict().items()}
        if {"mamba_n_heads", "mamba_d_head"} <= self.values.keys():  # as wide together as the inner width
            inner = self.values.get("mamba_d_ssm") or self.values["mamba_expand"] * self.values["hidden_size"]
            self.values |= {"mamba_n_heads": 8, "mamba_d_head": inner // 8}

    def _of(self, name: str, value: Any) -> Any:
        if name == "per_layer_config":
            own = {int(layer): values for layer, values in value.items()}
            value = {at: own[layer] for at, layer in enumerate(self._picked) if layer in own}
        if isinstance(value, dict):
            return {key: self._of(str(key), inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            entries = [self._of(name, entry) if type(entry) is int else entry for entry in value]
            if len(value) == self._all and _of_layers(name):
                return [entries[layer] for layer in self._picked]
            return entries
        return self._count(name, value) if type(value) is int else value

    def _count(self, name: str, value: int) -> int:
        role = self._roles.get(name, name)
        if role == "num_hidden_layers":
            return len(self._picked)
        if name == "num_kv_shared_layers":  # the last of all
            return sum(layer >= self._all - value for layer in self._picked)
        if re.search(r"token_id|token_index|_token$", name):
            return value % VOCABULARY
        if "vocab" in name:
            return VOCABULARY
        if role == "num_attention_heads" or re.search(r"heads", name):
            return self._heads_of(value)
        if re.search(r"head_dim|rank|theta|_base|mlp_only|indices|layer_ids", name) or value < 2:
            return value
        if re.search(r"per_tok|top_?k", name):
            return min(value, 2)
        if re.search(r"expert", name) and not _WIDTH.search(name):
            return min(value, 2 if re.search(r"shared|zero", name) else 8)
        if re.search(r"n_group|num_group", name):
            return min(value, 2)
        if _WIDTH.search(name):
            return self._widths.get(value, value)
        if value in self._hidden and re.search(r"hidden|dim|embd|embed|width", name):
            return self._hidden[value]
        if re.search(r"window|chunk|local|span|block_size|stride|segment|bucket", name):
            return min(value, _WINDOW)
        if re.search(r"original_max", name):
            return POSITIONS if self._fixed_rope else _SOON
        if re.search(r"max_.*(position|length|seq)|n_positions|n_ctx|seq_len", name):
            return POSITIONS
        is_width = re.search(r"dim|size|width|channel|state", name)
        return _SOON if value >= (POSITIONS if is_width else _LENGTH) else value

    def _heads_of(self, value: int) -> int:
        return value if value <= 1 else _HEADS if value >= self._heads else 2


_WIDTH = re.compile(r"intermediate|ffn|n_inner|mlp_dim|feed_?forward|expert_size|expert_dim")


def _widths(values: dict[str, Any]) -> list[int]:
    return [
        entry
        for name, value in values.items()
        if _WIDTH.search(name)
        for entry in (value if isinstance(value, (list, tuple)) else [value])
        if type(entry) is int and entry > 24
    ]


def _of_layers(name: str) -> bool:
    """Tells whether a list that is as long as there are layers has an entry for each."""
    return not re.search(r"token|only_layers|indices|layer_ids", name)
