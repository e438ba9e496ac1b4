"""Maps the stored tensors to the weights of a model, for both loading and export.

Names are matched by transformers' own rules for the family (a decoder saved without its head lacks "model."; experts
are stored one by one and held together). A missing weight would be drawn at random, and an unused tensor would be lost
in the export. Both are refused by name before training.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from engine.errors.model import MODEL_DIRECTORY_INVALID
from engine.models.folder import ModelFolder
from engine.models.safetensors_header import StoredTensor
from engine.models.wrappers import text_name

_PIECE = 1 << 22
"""Bytes of two tensors that are compared at a time."""


@dataclass(frozen=True)
class StackPart:
    """What a stored tensor is of a stack of experts' matrices."""

    weight: str
    "The model's name of the stack."
    expert: int
    part: int
    "Number of this part of the expert's outputs, such as 0 for the gate and 1 for the upward projection."
    parts: int


@dataclass(frozen=True)
class WeightMap:
    """The weights of a model in its files."""

    folder: ModelFolder
    whole: Mapping[str, StoredTensor]
    "The model's name of a weight → the single tensor that holds it."
    joined: Mapping[str, tuple[StoredTensor, ...]]
    "The model's name of a weight → the tensors that it is assembled from (experts)."
    shapes: Mapping[str, tuple[int, ...]]
    "The model's name of a weight → its shape in the model."
    tied: Mapping[str, str]
    "Name that shares a weight → the name that it is listed under."
    stacks: Mapping[str, bool] = field(default_factory=dict)
    "The model's name of each stack of experts' matrices → whether they are held as (inputs, outputs)."
    parts: Mapping[str, StackPart] = field(default_factory=dict)
    "Name of a tensor in an export → what it is of a stack, where experts are stored one by one."

    @property
    def names(self) -> Mapping[str, StoredTensor]:
        """Each stored tensor by its name in an export.

        That is the model's name or, in a model with joined weights, the stored name, which other programs know.
        """
        if not self.joined:
            return self.whole
        stored = [*self.whole.values(), *(part for parts in self.joined.values() for part in parts)]
        return {text_name(tensor.name, self.folder.renames): tensor for tensor in stored}

    def exported_as(self, name: str) -> str:
        """Returns the key in `names` of one of the model's weights."""
        return text_name(self.whole[name].name, self.folder.renames) if self.joined and name in self.whole else name


def map_weights(folder: ModelFolder, config: Any) -> WeightMap:
    """Matches the stored tensors with the weights of the model that `config` describes.

    Args:
        folder: From `open_folder`.
        config: Its transformers configuration.

    Raises:
        EliteError: MODEL_DIRECTORY_INVALID names a weight that is missing, is stored twice or has another shape, or a
            tensor that no weight uses.
        ValueError, KeyError, AttributeError: transformers cannot build a model from the configuration.
    """
    model = _empty_model(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    groups = _targets(model, folder, expected)
    tied = _tied(model)
    for name, source in tied.items():
        if name in groups:
            _join_tied(folder, groups, name, source)
        expected.pop(name, None)
    _check_missing(folder, expected, groups)
    whole, joined = {}, {}
    for name, tensors in groups.items():
        if len(tensors) == 1 and not tensors[0].converted:
            whole[name] = tensors[0].tensor
        else:
            joined[name] = tuple(one.tensor for one in tensors)
    _check_shapes(folder, expected, whole, joined)
    parts = {
        text_name(one.tensor.name, folder.renames): one.part
        for tensors in groups.values()
        for one in tensors
        if one.part is not None
    }
    return WeightMap(folder, whole, joined, expected, tied, _stacks(model), parts)


def _stacks(model: Any) -> dict[str, bool]:
    from engine.models.expert_stacks import stacks_of

    return {
        f"{path}.{name}": bool(module.is_transposed)
        for path, module in model.named_modules()
        for name in stacks_of(module)
    }


@dataclass(frozen=True)
class _Matched:
    tensor: StoredTensor
    converted: bool
    "Whether it is part of the weight, not all of it."
    part: StackPart | None = None


def _empty_model(config: Any) -> Any:
    """Builds the model on the meta device."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def _targets(model: Any, folder: ModelFolder, expected: Mapping[str, Any]) -> dict[str, list[_Matched]]:
    """Groups the stored tensors by the weight that transformers makes of them."""
    # Undocumented in transformers, but `from_pretrained` renames with it, and PEFT uses it too.
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    rules = get_model_conversion_mapping(model, dict(folder.renames) or None)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    groups: dict[str, list[_Matched]] = {}
    known = dict(expected)
    strange = []
    for name, tensor in folder.tensors.items():
        if folder.is_part(name):
            continue
        target, converter = rename_source_key(name, renamings, converters, model.base_model_prefix, known)
        if target not in expected:
            strange.append(name)
            continue
        matched = groups.setdefault(target, [])
        if matched and converter is None:
            problem = f"{matched[0].tensor.name} and {name} are both its {target}"
            raise MODEL_DIRECTORY_INVALID(path=folder.path, problem=problem)
        matched.append(_Matched(tensor, converter is not None, _part(target, name, converter, converters)))
    if strange:
        problem = f"{_some(strange)} of its files would be ignored: a {model.config.model_type} has no such weight"
        raise MODEL_DIRECTORY_INVALID(path=folder.path, problem=problem)
    return groups


def _part(target: str, name: str, pattern: str | None, converters: list[Any]) -> StackPart | None:
    """Reads which part of a stack a stored tensor is, if the stack is made of tensors by expert, side by side."""
    if pattern is None:
        return None
    for converter in converters:
        makes_it = any(own.strip(".").replace("*", "") in target for own in converter.target_patterns)
        if pattern not in converter.source_patterns or not makes_it:
            continue
        steps = [(type(step).__name__, getattr(step, "dim", None)) for step in converter.operations]
        if steps not in ([("MergeModulelist", 0)], [("MergeModulelist", 0), ("Concatenate", 1)]):
            return None
        found = re.search(re.escape(pattern).replace(r"\*", r"(\d+)"), name)
        number, count = converter.source_patterns.index(pattern), len(converter.source_patterns)
        return None if found is None or not found.groups() else StackPart(target, int(found[1]), number, count)
    return None


def _tied(model: Any) -> dict[str, str]:
    """Maps the name of each tied parameter to the name that it is listed under."""
    first: dict[int, str] = {}
    tied = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if first.setdefault(id(parameter), name) != name:
            tied[name] = first[id(parameter)]
    return tied


def _join_tied(folder: ModelFolder, groups: dict[str, list[_Matched]], name: str, source: str) -> None:
    """Keeps one of two tensors that config.json ties. They must be equal."""
    if source not in groups:
        groups[source] = groups.pop(name)
        return
    one, other = (groups[key][0].tensor for key in (source, name))
    if not _same(one, other):
        # transformers 5 keeps both; version 4 and llama.cpp drop the second.
        problem = (
            f"{other.name} differs from {one.name}, and config.json ties them; set tie_word_embeddings to false to "
            f"use both, or remove {other.name}"
        )
        raise MODEL_DIRECTORY_INVALID(path=folder.path, problem=problem)
    del groups[name]


def _same(one: StoredTensor, other: StoredTensor) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    pieces = [(start, min(_PIECE, one.size - start)) for start in range(0, one.size, _PIECE)]
    return all(left == right for left, right in zip(one.read(pieces), other.read(pieces), strict=True))


def _check_missing(folder: ModelFolder, expected: Mapping[str, Any], groups: Mapping[str, Any]) -> None:
    missing = [name for name in expected if name not in groups]
    if missing:
        problem = f"{_some(missing)} of the model's weights {'is' if len(missing) == 1 else 'are'} missing in its files"
        raise MODEL_DIRECTORY_INVALID(path=folder.path, problem=problem)


def _check_shapes(
    folder: ModelFolder,
    expected: Mapping[str, tuple[int, ...]],
    whole: Mapping[str, StoredTensor],
    joined: Mapping[str, tuple[StoredTensor, ...]],
) -> None:
    for name, tensor in whole.items():
        shape = folder.shape(tensor)
        if shape != expected[name]:
            problem = f"{tensor.name} has shape {shape}, and config.json makes it {expected[name]}"
            raise MODEL_DIRECTORY_INVALID(path=folder.path, problem=problem)
    for name, parts in joined.items():
        if sum(math.prod(folder.shape(part)) for part in parts) != math.prod(expected[name]):
            problem = f"{parts[0].name} and {len(parts) - 1} more do not fill {name} of shape {expected[name]}"
            raise MODEL_DIRECTORY_INVALID(path=folder.path, problem=problem)


def _some(names: list[str]) -> str:
    """Lists the first names and the number of the others."""
    shown = 2
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
