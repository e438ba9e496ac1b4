"""Fingerprints of the weights that a run was trained on, kept with its adapter.

An adapter is a difference. Added to other weights, it gives a model that nobody trained. The fingerprint hashes
samples of every tensor's bytes with its name, shape and dtype. Samples are enough, because fine-tuning again changes
weights everywhere.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engine import regular_file
from engine.errors.model import BASE_CHANGED
from engine.models.safetensors_header import StoredTensor
from engine.models.weight_map import WeightMap
from engine.whole_file import replace_text

FILE_NAME = "base_weights.json"
_SAMPLES, _SAMPLE = 16, 1024
"""Samples per tensor, spread evenly from its first byte to its last, and bytes per sample."""
_LAYER = re.compile(r"^(.*?\.\d+)\.")


@dataclass(frozen=True)
class Fingerprint:
    """Identifies the weights of a model, independent of the files that hold them."""

    parts: Mapping[str, str]
    "Layer, or weight outside of the layers → hash."

    def save(self, folder: Path) -> None:
        """Writes the fingerprint into a folder.

        Raises:
            OSError: it cannot be written.
        """
        text = json.dumps({"version": 1, "weights": dict(self.parts)}, indent=1)
        replace_text(folder / FILE_NAME, text + "\n")

    @staticmethod
    def read(folder: Path) -> Fingerprint | None:
        """Reads the fingerprint in a folder; None if there is none, as in runs of earlier versions.

        Raises:
            OSError, ValueError: it cannot be read.
        """
        path = folder / FILE_NAME
        if not path.exists():
            return None
        value = regular_file.read_object(path)
        parts = value.get("weights") if value.get("version") == 1 else None
        if not isinstance(parts, dict) or not all(isinstance(part, str) for part in parts.values()):
            raise ValueError(f"{FILE_NAME} holds no fingerprint")
        return Fingerprint(parts)

    def difference(self, other: Fingerprint) -> str | None:
        """Describes the difference in a few words; None if there is none."""
        if self.parts == other.parts:
            return None
        changed = sorted(key for key in self.parts if self.parts[key] != other.parts.get(key))
        new = sorted(other.parts.keys() - self.parts.keys())
        first = (changed or new)[0]
        count = len(changed) + len(new)
        return f"{first} differs" if count == 1 else f"{first} and {count - 1} more parts differ"


def fingerprint(weights: WeightMap) -> Fingerprint:
    """Reads samples of all stored weights and hashes them.

    Raises:
        OSError: a file cannot be read.
    """
    hashes: dict[str, hashlib._Hash] = {}
    tensors: list[tuple[str, StoredTensor]] = list(weights.whole.items())
    for name, parts in weights.joined.items():
        tensors += [(f"{name}.{part.name}", part) for part in parts]
    folder = weights.folder
    tensors += [(name, tensor) for name, tensor in folder.tensors.items() if folder.is_part(name)]
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        layer = _LAYER.match(name)
        found = hashes.setdefault(layer.group(1) if layer else name, hashlib.sha256())
        found.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
        for sample in tensor.read(_samples(tensor.size)):
            found.update(sample)
    return Fingerprint({name: found.hexdigest()[:32] for name, found in sorted(hashes.items())})


def _samples(size: int) -> list[tuple[int, int]]:
    if size <= _SAMPLES * _SAMPLE:
        return [(0, size)]
    last = size - _SAMPLE
    return [(last * number // (_SAMPLES - 1), _SAMPLE) for number in range(_SAMPLES)]


def compare_with_base(kept_in: Path, weights: WeightMap, run: str) -> bool:
    """Compares a model's files with the fingerprint in a folder; returns whether there was one.

    Args:
        kept_in: The adapter's folder, or the run's.
        weights: Weights of the model that is about to be used as the base.
        run: Name of the run or adapter in the error message.

    Raises:
        EliteError: BASE_CHANGED.
        OSError, ValueError: a file cannot be read.
    """
    kept = Fingerprint.read(kept_in)
    if kept is None:
        return False
    problem = kept.difference(fingerprint(weights))
    if problem:
        raise BASE_CHANGED(path=weights.folder.path, run=run, problem=problem)
    return True
