"""Makes sure that a loaded model has the values in its files, as engine.models.weight_map maps them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers

from engine.errors import EliteError
from engine.errors.model import MODEL_DIRECTORY_INVALID
from engine.models.safetensors_header import StoredTensor
from engine.models.weight_map import WeightMap

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_COMPARED = 256
"""Neighbouring values from the middle of each weight that are compared."""
_WHOLE = 65_536
"""Values of a weight up to which each of them is looked at: norms and biases."""


@torch.no_grad()
def check_loaded(model: Any, weights: WeightMap, info: Mapping[str, Any]) -> None:
    """Compares a sample of every weight with the files, and makes sure that it is of finite numbers.

    The names are matched twice, by the library and by `map_weights`. In any release of the library, this detects a
    weight that it draws at random or takes from another tensor.

    Args:
        model: A model from `from_pretrained`. Weights in 4 bits are not compared.
        weights: Weight map of the same files.
        info: Loading info of `from_pretrained` (`output_loading_info`).

    Raises:
        EliteError: MODEL_DIRECTORY_INVALID.
    """
    for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        said = [name for name in map(_name, info.get(kind) or ()) if name in weights.shapes]
        if said:
            raise _refusal(weights, f"{min(said)} is among its {kind.replace('_', ' ')}")
    parameters = {**dict(model.named_buffers()), **dict(model.named_parameters())}  # Gemma 4 stores a layer's scale
    for name, tensor in weights.whole.items():
        parameter = parameters.get(name)
        if parameter is None:
            raise _refusal(weights, f"it made no {name}")
        in_4_bits = hasattr(parameter, "quant_state")
        if tensor.name in weights.folder.quant_states:
            if not in_4_bits:
                raise _refusal(weights, f"it read {tensor.name} as other than 4 bits")
        elif not in_4_bits and not _agrees(parameter, tensor):
            raise _refusal(weights, f"it put other numbers into {name} than the {tensor.name} of the files")
        elif not in_4_bits and not _is_finite(parameter):
            dtype = str(parameter.dtype).removeprefix("torch.")
            problem = f"{tensor.name} holds numbers that are no finite ones in {dtype}, so that nothing can be computed"
            raise MODEL_DIRECTORY_INVALID(path=weights.folder.path, problem=problem)


def _name(said: Any) -> str:
    return str(said[0]) if isinstance(said, tuple) else str(said)


def _refusal(weights: WeightMap, problem: str) -> EliteError:
    return MODEL_DIRECTORY_INVALID(
        path=weights.folder.path, problem=f"transformers {transformers.__version__} reads it otherwise: {problem}"
    )


def _is_finite(parameter: torch.Tensor) -> bool:
    """Whether all numbers of a small weight are finite, or those of a large one that are compared."""
    values = parameter.detach().flatten()
    if values.numel() > _WHOLE:
        values = values[(values.numel() - _COMPARED) // 2 :][:_COMPARED]
    return bool(torch.isfinite(values).all())


def _agrees(parameter: torch.Tensor, tensor: StoredTensor) -> bool:
    dtype = _DTYPES[tensor.dtype]
    if parameter.numel() * dtype.itemsize != tensor.size:
        return False
    count = min(_COMPARED, parameter.numel())
    if not count:
        return True
    start = (parameter.numel() - count) // 2
    raw = next(tensor.read([(start * dtype.itemsize, count * dtype.itemsize)]))
    stored = torch.frombuffer(bytearray(raw), dtype=dtype).to(parameter.dtype)
    found = parameter.detach().flatten()[start : start + count].cpu()
    return torch.allclose(found, stored, rtol=0.0, atol=0.0, equal_nan=True)
