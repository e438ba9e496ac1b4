"""Reads names, shapes, dtypes and offsets of tensors from the header of a safetensors file. Imports no torch.

A file has 8 bytes with the header's length, the header as JSON, then the tensors' bytes without gaps
(https://huggingface.co/docs/safetensors/index#format).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LONGEST = 100_000_000
"""Largest header in bytes, the library's own limit."""

_BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E8M0": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
"""Bits of one value, by the dtype's name."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file."""

    file: Path
    name: str
    dtype: str
    "Name of the dtype, such as BF16 or F8_E4M3."
    shape: tuple[int, ...]
    start: int
    "Offset of its first byte in the file."
    size: int
    "Size in bytes."

    def read(self, pieces: Iterable[tuple[int, int]] | None = None) -> Iterator[bytes]:
        """Reads bytes of the tensor.

        Args:
            pieces: Offset and length of each piece in bytes; None reads the whole tensor as one piece.

        Raises:
            OSError: the file cannot be read, or is shorter than its header said.
        """
        with self.file.open("rb") as opened:
            for offset, size in [(0, self.size)] if pieces is None else pieces:
                opened.seek(self.start + offset)
                found = opened.read(size)
                if len(found) != size:
                    raise OSError(f"{self.file.name} is cut off")
                yield found


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Reads the tensors of a file by name, in the file's order.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is incomplete, or not in this format; the message begins with the file's name.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            header, begin = _read_json(file.read(8), file.read, size)
        tensors = [
            _stored(path, name, entry, begin) for name, entry in _mapping(header).items() if name != "__metadata__"
        ]
        _check_layout(tensors, begin, size)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path.name} is not a whole safetensors file ({str(error) or 'its header is nested'})"
        ) from None
    return {tensor.name: tensor for tensor in tensors}


def _read_json(prefix: bytes, read: Any, size: int) -> tuple[Any, int]:
    if len(prefix) < 8:
        raise ValueError("it is empty or cut off")
    (length,) = struct.unpack("<Q", prefix)
    if length > min(_LONGEST, size - len(prefix)):
        raise ValueError("its header is cut off")
    text: bytes = read(length)
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_without_repetition)
    except UnicodeDecodeError:
        raise ValueError("its header is not text") from None
    return header, len(prefix) + length


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it names {next(name for name in names if names.count(name) > 1)} twice")
    return found


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("its header is not an object")
    return value


def _stored(path: Path, name: str, entry: Any, begin: int) -> StoredTensor:
    values = _mapping(entry)
    dtype, shape, offsets = values.get("dtype"), _counts(values.get("shape")), _counts(values.get("data_offsets"))
    if dtype not in _BITS:
        raise ValueError(f"the number format {dtype!r} of {name} is unknown")
    if shape is None or offsets is None or len(offsets) != 2:
        raise ValueError(f"the entry of {name} is malformed")
    size = offsets[1] - offsets[0]
    if size * 8 != math.prod(shape) * _BITS[dtype]:
        raise ValueError(f"the bytes of {name} do not fill its shape")
    return StoredTensor(path, name, dtype, shape, begin + offsets[0], size)


def _counts(value: Any) -> tuple[int, ...] | None:
    if isinstance(value, list) and all(type(number) is int and number >= 0 for number in value):
        return tuple(value)
    return None


def _check_layout(tensors: list[StoredTensor], begin: int, size: int) -> None:
    """Makes sure that the tensors fill the file without gaps."""
    end = begin
    for tensor in sorted(tensors, key=lambda one: (one.start, one.size)):
        if tensor.start != end:
            raise ValueError(f"the bytes of {tensor.name} are not where the tensor before it ends")
        end += tensor.size
    if end != size:
        raise ValueError(f"it has {size:,} bytes, and its header describes {end:,}")
