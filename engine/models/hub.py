"""Finds the folder with a model's files, in the package, in a local directory, or in the hub's cache."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from engine import regular_file
from engine.assets import asset
from engine.errors.model import MODEL_NOT_AVAILABLE
from engine.models.folder import INDEX, SINGLE

if TYPE_CHECKING:
    from engine.models.spec import ModelSpec

_SMALL = ("*.json", "*.model", "*.jinja", "*.txt")


def find_folder(spec: ModelSpec, *, download: bool = True) -> Path:
    """Returns the folder with a model's files. Downloads hub files that are not cached, and only those that are read.

    Args:
        spec: The model.
        download: Whether files of the hub may be downloaded.

    Raises:
        EliteError: MODEL_NOT_AVAILABLE.
    """
    if spec.name == "demo":
        return asset("demo-model")
    if spec.path is not None:
        return spec.path
    return _fetch(spec.hub_id or spec.name, only_cached=not download)


def _fetch(name: str, *, only_cached: bool) -> Path:
    from huggingface_hub import snapshot_download

    try:
        # Variants and other libraries' copies (model.fp16.safetensors, consolidated.safetensors) are not downloaded.
        folder = Path(snapshot_download(name, allow_patterns=[*_SMALL, SINGLE], local_files_only=only_cached))
        if not (folder / SINGLE).exists() and (folder / INDEX).exists():
            files = sorted(set(regular_file.read_object(folder / INDEX, follow=True)["weight_map"].values()))
            snapshot_download(name, allow_patterns=[*_SMALL, *files], local_files_only=only_cached)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise MODEL_NOT_AVAILABLE(name=name, problem=lines[0]) from error
    return folder
