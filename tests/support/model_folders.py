"""Folders of a tiny model, changes to their files, and what is said of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.config import from_mapping
from engine.errors import EliteError
from engine.launch import preflight
from engine.models.catalogue import find_model
from engine.models.loading import load_model
from engine.models.placement import choose_placement

CPU = choose_placement("cpu", "fp32")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
Tensors = dict[str, torch.Tensor]
INDEX = "model.safetensors.index.json"


def edit(path: Path, change: Callable[[Tensors], Tensors], file: str = "model.safetensors") -> None:
    """Changes a file's tensors."""
    save_file(change(load_file(path / file)), path / file, metadata={"format": "pt"})


def edit_json(path: Path, name: str, **values: Any) -> None:
    """Sets entries of a file."""
    text = json.loads((path / name).read_text())
    (path / name).write_text(json.dumps({**text, **values}))


def shard(path: Path, *, count: int = 2) -> dict[str, str]:
    """The same weights in several files and an index, as large models come."""
    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    names, where = sorted(tensors), dict[str, str]()
    for number in range(count):
        file = f"model-{number + 1:05}-of-{count:05}.safetensors"
        part = names[number::count]
        save_file({name: tensors[name] for name in part}, path / file, metadata={"format": "pt"})
        where |= dict.fromkeys(part, file)
    write_index(path, where)
    return where


def write_index(path: Path, where: dict[str, str]) -> None:
    (path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))


def refusal(path: Path) -> str:
    """The message of the check before a run starts; nothing of torch has been asked then."""
    data: dict[str, Any] = {
        "model": {"name": str(path), "device": "cpu"},
        "training": {"method": "lora", "context": 128},
    }
    data |= {"data": {"repositories": [str(path.parent)]}, "output": {"directory": str(path.parent / "out")}}
    with pytest.raises(EliteError) as caught:
        preflight.check(from_mapping(data))
    assert caught.value.exit_code in (2, 3)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def loading_refusal(path: Path) -> str:
    """The message of the load."""
    with pytest.raises(EliteError) as caught:
        load_model(find_model(str(path)), CPU)
    assert caught.value.exit_code == 2
    return caught.value.message
