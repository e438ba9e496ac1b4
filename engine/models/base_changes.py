"""Changes to a base model before an adapter is attached. Every later use of the adapter must repeat them.

They are written beside the adapter as base_changes.json; evaluation, generation and export read them from there.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine import regular_file
from engine.errors.usage import CONFIG_INVALID

if TYPE_CHECKING:
    from engine.config import ModelSection
    from engine.models.spec import ModelSpec

FILE_NAME = "base_changes.json"


@dataclass(frozen=True, kw_only=True)
class BaseChanges:
    """Changes to the base model. None keeps the model's own value."""

    yarn_factor: float | None = None
    "Factor by which rotary positions are stretched (YaRN, arXiv 2309.00071)."
    kv_heads: int | None = None
    "Number of key and value heads after pooling (GQA, arXiv 2305.13245)."

    @staticmethod
    def of(model: ModelSection, spec: ModelSpec, context: int) -> BaseChanges:
        """Derives the changes of a run with windows of `context` tokens."""
        stretched = model.rope_scaling == "auto" and context > spec.max_context and spec.stretches
        return BaseChanges(
            yarn_factor=context / spec.max_context if stretched else None,
            # Heads that cannot be pooled are refused by check_pooling and pool_key_value_heads.
            kv_heads=model.kv_heads if model.kv_heads != spec.kv_heads else None,
        )

    def applied_to(self, spec: ModelSpec) -> ModelSpec:
        """Returns the model's shapes after the changes."""
        return dataclasses.replace(spec, kv_heads=self.kv_heads) if self.kv_heads else spec

    def save(self, adapter: Path) -> None:
        """Writes the changes into an adapter's folder; writes nothing if there are none."""
        if self != BaseChanges():
            (adapter / FILE_NAME).write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n", encoding="utf-8")

    @staticmethod
    def read(adapter: Path) -> BaseChanges:
        """Reads the changes from an adapter's folder.

        Raises:
            OSError, ValueError, TypeError: the file is not what `save` wrote.
        """
        path = adapter / FILE_NAME
        if not path.exists():
            return BaseChanges()
        found = BaseChanges(**regular_file.read_object(path))
        factor, heads = found.yarn_factor, found.kv_heads
        if not (factor is None or (type(factor) in (int, float) and factor > 0)):
            raise ValueError(f"{FILE_NAME}: yarn_factor is {factor!r}")
        if not (heads is None or (type(heads) is int and heads > 0)):
            raise ValueError(f"{FILE_NAME}: kv_heads is {heads!r}")
        return found


NO_CHANGES = BaseChanges()


def check_pooling(model: ModelSection, spec: ModelSpec) -> None:
    """Makes sure that `model.kv_heads` can be reached by pooling.

    Raises:
        EliteError: CONFIG_INVALID.
    """
    wanted = model.kv_heads
    if wanted is None or wanted == spec.kv_heads:
        return
    if spec.kv_heads != spec.heads or spec.fused_projections:
        problem = f"{spec.name} has {spec.kv_heads} key heads for {spec.heads} query heads as it is"
        if spec.fused_projections:
            problem = f"{spec.name} projects queries, keys and values in one layer"
        remedy = "leave it out; heads can be pooled where there is one for each query head"
    elif spec.heads % wanted or wanted > spec.heads:
        problem = f"{spec.heads} heads of {spec.name} cannot be pooled to {wanted} evenly"
        remedy = f"choose a divisor of {spec.heads}"
    else:
        return
    raise CONFIG_INVALID(source="configuration", field="model.kv_heads", problem=problem, remedy=remedy)


def stretch_positions(config: Any, factor: float) -> bool:
    """Sets YaRN in a transformers configuration before its model is built; returns whether anything changed.

    A model with a scaling of its own keeps it. Where layer types differ, the layers with a sliding window keep their
    positions, because they never see a distance that they were not trained with.
    """
    parameters: dict[str, Any] = dict(config.rope_parameters or {})
    nested = [key for key in parameters if isinstance(parameters[key], dict)]
    if nested:
        wanted = [key for key in nested if key == "full_attention"]
        changed = {key: _yarn(config, parameters[key], factor) for key in wanted}
        parameters |= {key: value for key, value in changed.items() if value}
        done = any(changed.values())
    else:
        stretched = _yarn(config, parameters, factor)
        parameters, done = stretched or parameters, stretched is not None
    if done:
        config.rope_parameters = parameters
    return done


def _yarn(config: Any, parameters: dict[str, Any], factor: float) -> dict[str, Any] | None:
    if parameters.get("rope_type", "default") != "default":
        return None
    return {
        **parameters,
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": config.max_position_embeddings,
    }
