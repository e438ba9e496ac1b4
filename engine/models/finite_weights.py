"""Searches a model's files for weights that are not finite, once a loss has shown that something is not."""

from __future__ import annotations

import torch

from engine.errors.model import MODEL_WEIGHTS_NOT_FINITE
from engine.models.weight_map import WeightMap

_PIECE = 64 << 20
"Bytes in memory at a time."
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def refuse_weights_not_finite(weights: WeightMap) -> None:
    """Reads all weights, and refuses the model if one is NaN or infinite.

    Raises:
        EliteError: MODEL_WEIGHTS_NOT_FINITE, which names the first tensor that holds one.
        OSError: a file cannot be read.
    """
    for tensor in weights.folder.tensors.values():
        if (dtype := _DTYPES.get(tensor.dtype)) is None:
            continue  # codes of a quantisation
        pieces = [(start, min(_PIECE, tensor.size - start)) for start in range(0, tensor.size, _PIECE)]
        for piece in tensor.read(pieces):
            values = torch.frombuffer(bytearray(piece), dtype=dtype)  # Shape (values of the piece,).
            if not torch.isfinite(values).all():
                what = "NaN" if torch.isnan(values).any() else "infinity"
                raise MODEL_WEIGHTS_NOT_FINITE(path=tensor.file, tensor=tensor.name, value=what)
