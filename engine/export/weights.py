"""Reads the base model's weights from their files, one tensor at a time."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from engine.errors.model import MODEL_DIRECTORY_INVALID

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from engine.models.safetensors_header import StoredTensor
    from engine.models.weight_map import WeightMap

_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float32}
"""Formats by safetensors' name; an export uses the base's format by default."""


class Weights(Protocol):
    """Named tensors whose shapes are known before any of them is read."""

    dequantised: bool
    "Whether some were stored in 4 bits only, so that they only approximate the originals."

    def names(self) -> list[str]:
        """Returns the names that the tensors are exported under, in storage order."""

    def exported_as(self, weight: str) -> str:
        """Returns the exported name of one of the model's weights."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns a tensor's shape."""

    def stored_dtype(self, name: str) -> torch.dtype:
        """Returns the type of the stored values."""

    def tensor(self, name: str) -> torch.Tensor:
        """Reads one tensor onto the CPU, in its shape and stored type (fp32 for 4-bit tensors)."""


class StoredWeights:
    """The memory-mapped weights of a model's files. bitsandbytes' 4-bit ones are dequantised."""

    def __init__(self, weights: WeightMap) -> None:
        """Opens every file.

        Raises:
            EliteError: MODEL_DIRECTORY_INVALID.
        """
        self._map = weights
        self._tensors = weights.names
        self._files = ExitStack()
        self._opened: dict[Path, Any] = {}
        self.dequantised = weights.folder.is_4_bit
        try:
            for file in {tensor.file for tensor in weights.folder.tensors.values()}:
                self._opened[file] = self._files.enter_context(safe_open(file, framework="pt", device="cpu"))
        except (OSError, SafetensorError) as error:
            self._files.close()
            raise MODEL_DIRECTORY_INVALID(path=weights.folder.path, problem=error) from error

    def __enter__(self) -> StoredWeights:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()

    def names(self) -> list[str]:
        """See Weights."""
        return list(self._tensors)

    def exported_as(self, weight: str) -> str:
        """See Weights."""
        return self._map.exported_as(weight)

    def shape(self, name: str) -> tuple[int, ...]:
        """See Weights."""
        return self._map.folder.shape(self._tensors[name])

    def stored_dtype(self, name: str) -> torch.dtype:
        """See Weights."""
        return _DTYPES.get(self._tensors[name].dtype, torch.uint8)

    def tensor(self, name: str) -> torch.Tensor:
        """See Weights."""
        tensor = self._tensors[name]
        stored: torch.Tensor = self._read(tensor)
        if tensor.name not in self._map.folder.quant_states:
            return stored
        from bitsandbytes.functional import QuantState, dequantize_4bit

        parts = {
            part: self._read(found)
            for part, found in self._map.folder.tensors.items()
            if part.startswith(f"{tensor.name}.")
        }
        state = QuantState.from_dict(parts, device=torch.device("cpu"))
        whole: torch.Tensor = dequantize_4bit(stored, state)
        return whole.float()

    def _read(self, tensor: StoredTensor) -> torch.Tensor:
        read: torch.Tensor = self._opened[tensor.file].get_tensor(tensor.name)
        return read


def count(shape: tuple[int, ...]) -> int:
    """Returns the number of values in a tensor of this shape."""
    return int(torch.Size(shape).numel())
