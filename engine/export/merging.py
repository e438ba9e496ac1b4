"""Merges a LoRA adapter into its base, one tensor at a time.

W' = W + s·B·A in fp32, with s = alpha / rank, or alpha / sqrt(rank) for rsLoRA (arXiv 2312.03732). DoRA (arXiv
2402.09353) rescales each row of that sum to its trained length m: W' = m · (W + s·B·A) / ‖W + s·B·A‖.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from engine import regular_file
from engine.errors.export import EXPORT_DAMAGED
from engine.export.weights import Weights
from engine.models.base_changes import NO_CHANGES, BaseChanges
from engine.models.grouped_heads import pool_heads

if TYPE_CHECKING:
    from engine.models.weight_map import WeightMap

_PREFIX = "base_model.model."
_HEAD = "lm_head.weight"
_EMBEDDINGS = ("model.embed_tokens.weight", "transformer.wte.weight")


@dataclass(frozen=True)
class Update:
    """Trained update of one linear layer's weight."""

    a: torch.Tensor
    "Shape (rank, inputs), fp32."
    b: torch.Tensor
    "Shape (outputs, rank), fp32."
    scale: float
    magnitude: torch.Tensor | None = None
    "DoRA's length of each row. Shape (outputs,), fp32."
    transposed: bool = False
    "Whether the weight is stored as (inputs, outputs): GPT-2's layers are convolutions of width 1."

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the weight as it is stored."""
        outputs, inputs = self.b.shape[0], self.a.shape[1]
        return (inputs, outputs) if self.transposed else (outputs, inputs)

    def applied(self, weight: torch.Tensor) -> torch.Tensor:
        """Returns the merged weight in fp32, in the shape that it is stored in."""
        return self._applied(weight.T).T.contiguous() if self.transposed else self._applied(weight)

    def _applied(self, weight: torch.Tensor) -> torch.Tensor:
        """Merges a weight of shape (outputs, inputs)."""
        merged = torch.addmm(weight.float(), self.b, self.a, alpha=self.scale)
        if self.magnitude is not None:
            merged *= (self.magnitude / merged.norm(dim=1))[:, None]
        return merged


@dataclass(frozen=True)
class StackUpdate:
    """Trained update of all experts' matrices in one stack."""

    experts: tuple[Update, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the stack as it is stored."""
        return (len(self.experts), *self.experts[0].shape)

    def applied(self, weight: torch.Tensor) -> torch.Tensor:
        """Returns the merged stack in fp32, in the shape that it is stored in."""
        merged = torch.empty(weight.shape, dtype=torch.float32)
        for number, update in enumerate(self.experts):
            merged[number] = update.applied(weight[number])
        return merged


def read_updates(adapter: Path, base: WeightMap | None = None) -> dict[str, Update | StackUpdate]:
    """Reads an adapter in PEFT's format, as updates by the name of the weight that each changes.

    Args:
        adapter: Its folder.
        base: The weights that it was trained on; needed where experts have adapters. An expert that is stored by itself
            is named as in an export.

    Raises:
        EliteError: EXPORT_DAMAGED.
    """
    try:
        config = regular_file.read_object(adapter / "adapter_config.json")
        tensors = load_file(adapter / "adapter_model.safetensors")
        return _updates(config, tensors, base)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise EXPORT_DAMAGED(path=adapter, problem=f"{type(error).__name__}: {error}") from error


def _updates(
    config: dict[str, Any], tensors: dict[str, torch.Tensor], base: WeightMap | None
) -> dict[str, Update | StackUpdate]:
    root = math.sqrt if config.get("use_rslora") else float
    updates: dict[str, Update | StackUpdate] = {}
    for key in sorted(tensors):
        if not key.endswith(".lora_A.weight"):
            continue
        layer = key.removesuffix(".lora_A.weight")
        a, b = tensors[key].float(), tensors[f"{layer}.lora_B.weight"].float()
        module = re.sub(r"(\.base_layer)+$", "", layer.removeprefix(_PREFIX))
        stacks = {name: base.shapes[name] for name in base.stacks if name.startswith(f"{module}.")} if base else {}
        if base is not None and stacks:
            updates |= _of_experts(base, module, stacks, a, b, lambda rank: config["lora_alpha"] / root(rank))
            continue
        magnitude = tensors.get(f"{layer}.lora_magnitude_vector")
        updates[f"{layer.removeprefix(_PREFIX)}.weight"] = Update(
            a,
            b,
            config["lora_alpha"] / root(a.shape[0]),
            None if magnitude is None else magnitude.float(),
            transposed=bool(config.get("fan_in_fan_out")),
        )
    known = (".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector")
    strange = [key for key in tensors if not key.endswith(known)]
    if strange or not updates:
        raise ValueError(f"it holds {strange[0]}" if strange else "it holds no updates")
    return updates


def _of_experts(
    base: WeightMap,
    module: str,
    stacks: dict[str, tuple[int, ...]],
    a: torch.Tensor,
    b: torch.Tensor,
    scale: Callable[[int], float],
) -> dict[str, Update | StackUpdate]:
    """Splits the adapter of a stack, which PEFT names only by the stack's module, by what the base stores.

    PEFT holds A as (experts · rank, inputs) and B as (outputs, rank · experts), the experts innermost.
    """
    inputs, outputs = a.shape[1], b.shape[0]
    name = next((n for n, shape in stacks.items() if _widths(shape, base.stacks[n]) == (inputs, outputs)), None)
    if name is None:
        raise ValueError(f"no stack of {module} has {inputs} inputs and {outputs} outputs")
    count = stacks[name][0]
    by_a, by_b = a.view(count, -1, inputs), b.view(outputs, -1, count).permute(2, 0, 1)
    factor = scale(by_a.shape[1])
    parts = {stored: part for stored, part in base.parts.items() if part.weight == name}
    if parts:
        return {
            stored: Update(by_a[part.expert], by_b[part.expert].chunk(part.parts)[part.part], factor)
            for stored, part in parts.items()
        }
    if name in base.joined:
        raise ValueError(f"{name} is stored in tensors that it cannot be merged into")
    transposed = base.stacks[name]
    experts = (Update(own_a, own_b, factor, transposed=transposed) for own_a, own_b in zip(by_a, by_b, strict=True))
    return {base.exported_as(name): StackUpdate(tuple(experts))}


def _widths(shape: tuple[int, ...], transposed: bool) -> tuple[int, int]:
    """Inputs and outputs of the matrices of a stack."""
    return (shape[1], shape[2]) if transposed else (shape[2], shape[1])


class MergedWeights:
    """A base's weights with an adapter merged in, as `Weights`."""

    def __init__(
        self,
        base: Weights,
        updates: dict[str, Update | StackUpdate],
        changes: BaseChanges = NO_CHANGES,
        *,
        heads: int = 0,
        tied: bool = False,
    ) -> None:
        """Matches the updates with the weights.

        Args:
            base: The weights that the adapter was trained on.
            updates: By the weight's name. None for a model whose every weight was trained.
            changes: Changes to the base before training.
            heads: Number of query heads, for pooling key and value heads.
            tied: Whether the head shares the embedding's weights. It gets its own if the adapter changes it.

        Raises:
            EliteError: EXPORT_DAMAGED, when the adapter belongs to another model.
        """
        self._base, self._changes, self._heads = base, changes, heads
        self.dequantised = base.dequantised
        names = base.names()
        self._embeddings = next((name for name in _EMBEDDINGS if name in names), "") if tied else ""
        self.unties_head = bool(self._embeddings) and _HEAD in updates
        self._names = [*names, *([_HEAD] if self.unties_head else [])]
        self._updates = {name if name in names else base.exported_as(name): u for name, u in updates.items()}
        for name, update in self._updates.items():
            shape = update.shape
            if name not in self._names or self.shape(name) != shape:
                problem = f"the adapter changes {name} of shape {shape}, which the base does not have"
                raise EXPORT_DAMAGED(path="the adapter", problem=problem)

    @property
    def updates(self) -> dict[str, Update | StackUpdate]:
        """The adapter's updates by the names of the weights that they change."""
        return self._updates

    def names(self) -> list[str]:
        """See Weights."""
        return self._names

    def exported_as(self, weight: str) -> str:
        """See Weights."""
        return self._base.exported_as(weight)

    def shape(self, name: str) -> tuple[int, ...]:
        """See Weights."""
        stored = self._base.shape(self._stored_as(name))
        if self._is_pooled(name):
            return (stored[0] // self._heads * (self._changes.kv_heads or 1), *stored[1:])
        return stored

    def stored_dtype(self, name: str) -> torch.dtype:
        """See Weights."""
        return self._base.stored_dtype(self._stored_as(name))

    def tensor(self, name: str) -> torch.Tensor:
        """See Weights. Tensors that the adapter changes are fp32."""
        weight = self._base.tensor(self._stored_as(name))
        if self._is_pooled(name):
            weight = pool_heads(weight, self._heads, self._changes.kv_heads or 1)
        update = self._updates.get(name)
        return weight if update is None else update.applied(weight)

    def _stored_as(self, name: str) -> str:
        return self._embeddings if name == _HEAD and self.unties_head else name

    def _is_pooled(self, name: str) -> bool:
        return self._changes.kv_heads is not None and name.rpartition(".")[0].endswith((".k_proj", ".v_proj"))
