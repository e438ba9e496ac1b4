"""The base model's weights, read one tensor at a time from the files that they are in."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from engine import errors

if TYPE_CHECKING:
    from types import TracebackType

_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_QUANTISED = ".quant_state.bitsandbytes__"


class Weights(Protocol):
    """Named tensors whose shapes are known before any of them is read."""

    dequantised: bool
    "Whether some of them were stored in 4 bits only, and are what is left of the original ones."

    def names(self) -> list[str]:
        """The tensors' names in the model, in the order in which they are stored."""

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""

    def stored_dtype(self, name: str) -> torch.dtype:
        """What its numbers are stored in."""

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor on the CPU, in the numbers that it is stored in (those of 4 bits in fp32)."""


class StoredWeights:
    """The weights in a directory of safetensors files, memory-mapped. bitsandbytes' 4-bit ones are dequantised."""

    def __init__(self, path: Path) -> None:
        """Opens every file.

        Raises:
            EliteError: MODEL_DIRECTORY_INVALID.
        """
        self._path = path
        self._files = ExitStack()
        self._where: dict[str, Any] = {}
        self._states: dict[str, str] = {}
        try:
            for file in weight_files(path):
                opened = self._files.enter_context(safe_open(file, framework="pt", device="cpu"))
                self._where.update(dict.fromkeys(opened.keys(), opened))
        except (OSError, SafetensorError, ValueError) as error:
            self._files.close()
            raise errors.MODEL_DIRECTORY_INVALID(path=path, problem=error) from error
        for key in self._where:
            weight, found, _ = key.partition(_QUANTISED)
            if found:
                self._states[weight] = key
        self.dequantised = bool(self._states)

    def __enter__(self) -> StoredWeights:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()

    def names(self) -> list[str]:
        """See Weights."""
        parts = tuple(f"{weight}." for weight in self._states)
        return [key for key in self._where if not (parts and key.startswith(parts))]

    def shape(self, name: str) -> tuple[int, ...]:
        """See Weights."""
        if name in self._states:
            return tuple(self._state(name).shape)
        return tuple(self._where[name].get_slice(name).get_shape())

    def stored_dtype(self, name: str) -> torch.dtype:
        """See Weights."""
        return _DTYPES.get(self._where[name].get_slice(name).get_dtype(), torch.uint8)

    def tensor(self, name: str) -> torch.Tensor:
        """See Weights."""
        stored: torch.Tensor = self._where[name].get_tensor(name)
        if name not in self._states:
            return stored
        from bitsandbytes.functional import dequantize_4bit

        whole: torch.Tensor = dequantize_4bit(stored, self._state(name))
        return whole.float()

    def _state(self, name: str) -> Any:
        from bitsandbytes.functional import QuantState

        parts = {key: self._where[key].get_tensor(key) for key in self._where if key.startswith(f"{name}.")}
        return QuantState.from_dict(parts, device=torch.device("cpu"))


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a model's directory: those that its index names, or the only one.

    Raises:
        OSError, ValueError: the index cannot be read, or a file of it is missing, or there is none.
    """
    index = path / "model.safetensors.index.json"
    if index.exists():
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        files = [path / Path(name).name for name in dict.fromkeys(named)]
    else:
        files = sorted(path.glob("model*.safetensors")) or sorted(path.glob("*.safetensors"))
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise ValueError(f"{missing[0]} is missing" if missing else "it holds no safetensors")
    return files


def count(shape: tuple[int, ...]) -> int:
    """Numbers in a tensor of this shape."""
    return int(torch.Size(shape).numel())
