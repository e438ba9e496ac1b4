"""An optimiser's state as named tensors and JSON numbers, and back: what a checkpoint can hold without pickle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

_NESTED = "/"


def flatten_state(state: Mapping[int, Mapping[str, Any]]) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """Tensors by "parameter.name", and the rest by parameter and name.

    Values are tensors, numbers, or mappings of these (bitsandbytes keeps quantised states one level deeper).
    """
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for parameter, values in state.items():
        for name, value in values.items():
            nested = {f"{name}{_NESTED}{inner}": v for inner, v in value.items()} if isinstance(value, Mapping) else {}
            for path, entry in (nested or {name: value}).items():
                if isinstance(entry, Tensor):
                    tensors[f"{parameter}.{path}"] = entry.detach().cpu().contiguous()
                else:
                    numbers.setdefault(str(parameter), {})[path] = entry
    return tensors, numbers


def unflatten_state(
    tensors: Mapping[str, Tensor], numbers: Mapping[str, Mapping[str, Any]]
) -> dict[int, dict[str, Any]]:
    """What `flatten_state` was given."""
    state: dict[int, dict[str, Any]] = {}

    def put(parameter: str, path: str, value: Any) -> None:
        place = state.setdefault(int(parameter), {})
        outer, nested, inner = path.partition(_NESTED)
        if nested:
            place.setdefault(outer, {})[inner] = value
        else:
            place[path] = value

    for parameter, values in numbers.items():
        for path, value in values.items():
            put(parameter, path, value)
    for key, tensor in tensors.items():
        parameter, _, path = key.partition(".")
        put(parameter, path, tensor)
    return state
