"""Attaches a LoRA adapter (arXiv 2106.09685) to a frozen model and saves it in PEFT's format."""

from __future__ import annotations

import copy
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from engine import atomic_dir
from engine.errors import EliteError
from engine.errors.usage import CONFIG_INVALID
from engine.models.base_changes import NO_CHANGES, BaseChanges
from engine.models.expert_stacks import CHOSEN_EXPERTS, stacks_of, unpacked_shapes
from engine.models.experts import use_frozen_experts
from engine.models.families import adapts_mlp
from engine.models.layers import decoder_layers, layer_list
from engine.models.recurrent_mixers import mixer_names
from engine.models.spec import EXPERTS, rank_of_experts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from engine.config import LoraSection
    from engine.models.base_fingerprint import Fingerprint

ALL_LINEAR = "all-linear"
_OF_EXPERTS = frozenset({"gate_proj", "up_proj", "down_proj"})
"""Names that PEFT takes for those of experts wherever they are: a gate of attention that has one gets no adapter."""
_MAMBA = frozenset({"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"})
_NOT_OF_MAMBA = frozenset({"out_proj", "conv1d"})
"""Model types, and the names of layers that PEFT refuses in them: Mamba's kernels read their weights past an adapter.
See `_check_lora_target_modules_mamba` in peft/tuners/tuners_utils.py."""


def attach_adapter(model: PreTrainedModel, lora: LoraSection, seed: int) -> PeftModel:
    """Wraps the model in an adapter that changes nothing yet (B = 0). Only the adapter's weights require gradients.

    A and B are fp32 for every base precision, because they are the master weights that the optimiser updates.

    Raises:
        EliteError: CONFIG_INVALID when `lora.targets` names layers that the model does not have, or experts get an
            adapter of a kind that they cannot have.
    """
    targets, stacks = _targets(model, lora.targets), _stacks(model, lora)
    rank = rank_of_experts(lora.rank, _chosen_experts(model.config), lora.expert_rank)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        target_parameters=stacks or None,
        rank_pattern=dict.fromkeys(stacks, rank) if rank != lora.rank else {},
        exclude_modules=_outside_layers(model) or None,
        task_type="CAUSAL_LM",
        use_rslora=lora.rslora,
        use_dora=lora.dora,
    )
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        with unpacked_shapes(model), warnings.catch_warnings():
            # PEFT looks for the patterns among linear layers alone.
            warnings.filterwarnings("ignore", "The following rank_pattern keys did not match")
            adapted = get_peft_model(model, config)
    for parameter in trainable(adapted).values():
        parameter.data = parameter.data.float()
    if stacks:
        use_frozen_experts(adapted)  # PEFT's own forward adds up a stack of merged matrices
    return adapted


def _targets(model: PreTrainedModel, asked: Sequence[str]) -> str | list[str]:
    """Returns PEFT's `target_modules`, the linear layers that get an adapter.

    Raises:
        EliteError: CONFIG_INVALID.
    """
    family = model.config.model_type
    everything = adapts_mlp(family)
    linear = linear_names(model, everything=everything, family=family)
    if ALL_LINEAR in asked:
        if everything and family in _MAMBA:  # by name, and all-linear leaves out the head
            inside = [linear_names(layer, everything=True, family=family) for layer in decoder_layers(model)]
            return sorted(set().union(*inside))
        return ALL_LINEAR if everything and EXPERTS not in asked else sorted(linear)
    if unknown := [name for name in asked if name not in linear and name != EXPERTS]:
        raise CONFIG_INVALID(
            source="configuration",
            field="lora.targets",
            problem=f"this model has no linear layer named {unknown[0]} that takes an adapter",
            remedy=f"choose among {ALL_LINEAR}, {', '.join(sorted(linear))}",
        )
    return [name for name in asked if name != EXPERTS]


def _stacks(model: PreTrainedModel, lora: LoraSection) -> list[str]:
    """Returns PEFT's `target_parameters`, the stacked matrices of experts, where they get an adapter.

    Raises:
        EliteError: CONFIG_INVALID.
    """
    if EXPERTS not in lora.targets:
        return []
    found = {
        f"{name.rpartition('.')[2]}.{stack}"
        for layer in decoder_layers(model)
        for name, module in layer.named_modules()
        for stack in stacks_of(module)
    }
    problem, remedy = "", "remove experts from lora.targets"
    if not found:
        problem = "this model has no experts that take an adapter"
    for name, used in (("lora.dropout", lora.dropout > 0), ("lora.dora", lora.dora)):
        if used:
            problem, remedy = f"{name} cannot be computed for experts", f"switch {name} off, or {remedy}"
    if problem:
        raise CONFIG_INVALID(source="configuration", field="lora.targets", problem=problem, remedy=remedy)
    return sorted(found)


def _chosen_experts(config: Any) -> int:
    """Number of experts that a token passes through; 1 where the configuration does not say."""
    found = next((getattr(config, name) for name in CHOSEN_EXPERTS if getattr(config, name, None)), 1)
    return int(found[0] if isinstance(found, (list, tuple)) else found)


def _outside_layers(model: PreTrainedModel) -> list[str]:
    """Names of linear layers that are in no decoder layer, such as those of a tower for pictures: text trains none."""
    try:
        parent, name = layer_list(model)
    except EliteError:
        return []
    inside = {id(part) for part in getattr(parent, name).modules()}
    head = model.get_output_embeddings()
    return [
        path
        for path, part in model.named_modules()
        if isinstance(part, (nn.Linear, Conv1D)) and id(part) not in inside and part is not head
    ]


def linear_names(model: nn.Module, *, everything: bool, family: str) -> set[str]:
    """Names of the linear layers that take an adapter, within their modules.

    Args:
        model: A causal language model, or a part of it.
        everything: Whether those of MLPs do (engine.models.families.adapts_mlp).
        family: transformers' model_type.
    """
    mixers = tuple(f"{name}." for name in mixer_names(model))
    found = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
        and (everything or ".self_attn." in f".{name}" or name.startswith(mixers))
    }
    refused = _NOT_OF_MAMBA if family in _MAMBA else frozenset[str]()
    return (found if everything else found - _OF_EXPERTS) - refused


def without_adapter(model: Any) -> PreTrainedModel:
    """Returns the causal language model inside an adapter, or the model itself if it has none."""
    base: PreTrainedModel = model.get_base_model() if isinstance(model, PeftModel) else model
    return base


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Returns the trainable parameters by name, in a fixed order."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def adapter_config_json(model: PeftModel) -> str:
    """Returns the content of adapter_config.json, with `inference_mode` set."""
    with tempfile.TemporaryDirectory(prefix="elite-tui-") as folder:
        config = copy.copy(model.peft_config["default"])
        config.inference_mode = True
        config.save_pretrained(folder)
        return (Path(folder) / "adapter_config.json").read_text(encoding="utf-8")


def save_adapter(
    model: PeftModel,
    path: Path,
    tokenizer: PreTrainedTokenizerFast,
    changes: BaseChanges = NO_CHANGES,
    base: Fingerprint | None = None,
) -> None:
    """Writes the adapter in PEFT's format and the tokenizer. The folder appears complete or not at all.

    `changes` to the base model are written beside it, because the adapter is useless on the unchanged one. So is
    `base`, the fingerprint of the weights that it was trained on.

    Raises:
        OSError: the disk is full or not writable.
    """
    aside = path.with_name(f".{path.name}.new")
    shutil.rmtree(aside, ignore_errors=True)
    # "auto" would ask the hub whether the embeddings were resized, which they never are.
    aside.mkdir()  # its parents are not made again
    model.save_pretrained(aside, save_embedding_layers=False)
    tokenizer.save_pretrained(aside)
    changes.save(aside)
    if base is not None:
        base.save(aside)
    atomic_dir.seal(path, aside, {})
