"""Checks the files of a model's folder and their contents before any of it is loaded. Imports no torch.

Loading, scoring, generation and export all read the weights that `open_folder` names. A folder is refused if
transformers and another program would read different files.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from engine import regular_file
from engine.errors.model import MODEL_DIRECTORY_INVALID, MODEL_QUANTISED
from engine.models.safetensors_header import StoredTensor, read_header
from engine.models.wrappers import is_of_text, is_wrapper, text_renames, text_settings

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5")
_READ = (".json", ".safetensors", ".model", ".jinja", ".txt", ".tiktoken")
"""Endings of the files that transformers reads from a folder."""
_READ_FOLDERS = ("additional_chat_templates",)

_FLOATS = ("F64", "F32", "BF16", "F16")
"""Number formats that a weight may be stored in."""
_QUANT_STATE = ".quant_state.bitsandbytes__"

FORMATS = "bf16, fp16, fp32, or bitsandbytes' 4 bits (nf4, fp4)"
_OTHER_QUANTISATIONS = {"compression_config": "compressed-tensors", "quantization": "MLX's codes"}
"""Keys of config.json that stand for a quantization_config → who writes them."""
_HARMLESS = re.compile(r"(^|\.)rotary_emb\.(inv_freq|cos_cached|sin_cached)$")


@dataclass(frozen=True)
class ModelFolder:
    """A model's folder whose files are whole."""

    path: Path
    config: dict[str, Any]
    "config.json; of a multimodal wrapper, the settings of its text model."
    tensors: dict[str, StoredTensor]
    "Every tensor by its stored name, except rotary tables, which every model computes itself; a wrapper's text only."
    renames: Mapping[str, str] = field(default_factory=dict)
    "Rules that turn stored names into the text model's (engine.models.wrappers); none outside wrappers."

    @cached_property
    def quant_states(self) -> dict[str, str]:
        """Weights that bitsandbytes stored in 4 bits → the tensor with their quantisation state."""
        return {name.partition(_QUANT_STATE)[0]: name for name in self.tensors if _QUANT_STATE in name}

    @property
    def is_4_bit(self) -> bool:
        """Whether the linear layers' weights are stored in bitsandbytes' 4 bits."""
        return bool(self.quant_states)

    def is_part(self, name: str) -> bool:
        """Tells whether a tensor is part of a 4-bit weight, such as its scales or its quantisation state."""
        return _QUANT_STATE in name or name.rpartition(".")[0] in self.quant_states

    def shape(self, tensor: StoredTensor) -> tuple[int, ...]:
        """Returns a tensor's shape; for a 4-bit one, the shape of the unpacked weight.

        Raises:
            EliteError: MODEL_DIRECTORY_INVALID, if the quantisation state cannot be read.
        """
        state = self.quant_states.get(tensor.name)
        if state is None:
            return tensor.shape
        try:
            return tuple(int(number) for number in json.loads(next(self.tensors[state].read()))["shape"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise MODEL_DIRECTORY_INVALID(path=self.path, problem=f"{state} cannot be read") from error


def open_folder(path: Path) -> ModelFolder:
    """Reads the folder's configuration and tensors, from headers only.

    Raises:
        EliteError: MODEL_DIRECTORY_INVALID names the file that is missing, damaged, ambiguous or not a file;
            MODEL_QUANTISED names a number format that cannot be trained.
    """
    try:
        check_files(path)
        config = _read_config(path)
        check_quantisation(path, config)
        folder = _text_of(ModelFolder(path, config, _read_tensors(path)))
    except (OSError, ValueError, RecursionError) as error:
        raise MODEL_DIRECTORY_INVALID(path=path, problem=_words(error)) from error
    _check_formats(folder)
    return folder


def _text_of(folder: ModelFolder) -> ModelFolder:
    """Returns the folder of a wrapper's text model; the folder itself where it holds no wrapper."""
    if not is_wrapper(folder.config):
        return folder
    tensors = {name: tensor for name, tensor in folder.tensors.items() if is_of_text(name)}
    renames = text_renames(tensors)
    if not renames:
        kind = folder.config.get("model_type")
        raise ValueError(f"it holds a {kind} model, and no language_model in it whose weights could be trained")
    return ModelFolder(folder.path, text_settings(folder.config), tensors, renames)


def _words(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "a JSON file of it is nested too deeply"
    if isinstance(error, OSError) and error.filename:
        return f"{Path(error.filename).name} cannot be read ({error.strerror})"
    return str(error)


# --- files -------------------------------------------------------------------------------------------------


def check_files(path: Path) -> None:
    """Makes sure that all files read from a folder are regular ones, or links to such, as in the hub's cache.

    A pipe or a device would block for ever, or give different content at each read.

    Raises:
        ValueError: a file is not.
        OSError: the folder cannot be listed.
    """
    for folder in (path, *(path / name for name in _READ_FOLDERS)):
        if folder != path and not folder.is_dir():
            continue
        for entry in sorted(os.scandir(folder), key=lambda one: one.name):
            _check_file(entry)


def _check_file(entry: os.DirEntry[str]) -> None:
    is_read = entry.name.endswith(_READ)
    try:
        mode = entry.stat().st_mode
    except OSError as error:
        if is_read:
            raise ValueError(f"{entry.name} is a link to nothing ({error.strerror})") from error
        return
    if stat.S_ISREG(mode) or (stat.S_ISDIR(mode) and not is_read):
        return
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    raise ValueError(f"{entry.name} is {kinds.get(stat.S_IFMT(mode), 'a device')}, not a file")


def _read_config(path: Path) -> dict[str, Any]:
    config = _read_json(path / "config.json")
    if "model_type" not in config:
        adapter = path / "adapter_config.json"
        raise ValueError(f"config.json names no model_type{_of_adapter(adapter)}")
    if (path / "adapter_config.json").exists():
        # transformers would load the adapter's own base, which can be any other model.
        raise ValueError("it holds an adapter (adapter_config.json) beside a model; move it into a folder of its own")
    named = config.get("transformers_weights")
    if named not in (None, SINGLE, INDEX):
        raise ValueError(f"config.json reads the weights from {named}, and only {SINGLE} or {INDEX} are read here")
    return config


def _of_adapter(adapter: Path) -> str:
    return ", and adapter_config.json makes it an adapter: pass its base model" if adapter.exists() else ""


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return regular_file.read_object(file, follow=True, bounded=False)
    except FileNotFoundError:
        adapter = file.with_name("adapter_config.json")
        raise ValueError(f"it has no {file.name}{_of_adapter(adapter)}") from None
    except ValueError as error:
        raise ValueError(f"{file.name} cannot be read ({error})") from error


# --- tensors -----------------------------------------------------------------------------------------------


def _read_tensors(path: Path) -> dict[str, StoredTensor]:
    where = _read_index(path)
    found: dict[str, StoredTensor] = {}
    for file in _weight_files(path, where):
        for name, tensor in read_header(file).items():
            if _HARMLESS.search(name):
                continue
            if name in found:
                raise ValueError(f"{name} is in {found[name].file.name} and in {file.name}")
            if where is not None and where.get(name) != file.name:
                said = f"in {where[name]}" if name in where else "nowhere"
                raise ValueError(f"{name} is in {file.name}, and {INDEX} has it {said}")
            found[name] = tensor
    lost = next((name for name in where or {} if name not in found and not _HARMLESS.search(name)), None)
    if where is not None and lost is not None:
        raise ValueError(f"{INDEX} has {lost} in {where[lost]}, which does not hold it")
    return found


def _read_index(path: Path) -> dict[str, str] | None:
    """Returns the file of each tensor by the index; None if there is no index."""
    if not (path / INDEX).exists():
        return None
    index = _read_json(path / INDEX)
    where = index.get("weight_map")
    if not (isinstance(where, dict) and where and all(isinstance(file, str) for file in where.values())):
        raise ValueError(f"{INDEX} has no weight_map of names and files")
    if not isinstance(index.get("metadata"), dict):
        raise ValueError(f"{INDEX} has no metadata, without which transformers does not read it")
    for name, file in where.items():
        if re.search(r"[/\\\0]", file) or not file.endswith(".safetensors"):
            raise ValueError(f"{INDEX} has {name} in {file}, which is not a safetensors file of this folder")
    return where


def _weight_files(path: Path, where: dict[str, str] | None) -> list[Path]:
    single = path / SINGLE
    named = list(dict.fromkeys(where.values())) if where is not None else []
    if single.exists() and named not in ([], [SINGLE]):
        # transformers reads the single file, other programs the index.
        raise ValueError(f"it holds {SINGLE} and {INDEX}, which names {named[0]}; remove the one that is out of date")
    if where is None and single.exists():
        return [single]
    missing = next((file for file in named if not (path / file).exists()), None)
    if missing:
        raise ValueError(f"{missing} is missing, which {INDEX} names")
    if named:
        return [path / file for file in named]
    raise ValueError(_without_weights(path))


def _without_weights(path: Path) -> str:
    files = sorted(file.name for file in path.iterdir())
    shards = [file for file in files if _SHARD.fullmatch(file)]
    others = [file for file in files if file.endswith(".safetensors")]
    pickled = [file for file in files if file.endswith(_PICKLED)]
    if shards:
        return f"{INDEX} is missing, which says what {shards[0]} holds"
    if others:
        return f"its weights are in {others[0]}, and only {SINGLE} or {INDEX} are read"
    if pickled:
        return f"its weights are pickled ({pickled[0]}), which could run code"
    if any(file.endswith(".gguf") for file in files):
        return "its weights are a GGUF file, and only safetensors are read"
    return "it holds no weights"


# --- number formats ----------------------------------------------------------------------------------------


def check_quantisation(path: Path | str, config: dict[str, Any]) -> None:
    """Refuses a quantisation in config.json that is not supported from training to export.

    Raises:
        EliteError: MODEL_QUANTISED.
    """
    settings = config.get("quantization_config")
    other = next((key for key in _OTHER_QUANTISATIONS if isinstance(config.get(key), dict)), None)
    if settings is None and other is not None:
        settings = {"quant_method": _OTHER_QUANTISATIONS[other]}
    if settings is None:
        return
    method = settings.get("quant_method") if isinstance(settings, dict) else "an unreadable quantization_config"
    if isinstance(settings, dict) and method in (None, "bitsandbytes"):
        if settings.get("load_in_4bit") and not settings.get("load_in_8bit"):
            return
        method = "bitsandbytes' 8 bits" if settings.get("load_in_8bit") else "a quantization_config without a method"
    raise MODEL_QUANTISED(path=path, format=method, supported=FORMATS)


def _check_formats(folder: ModelFolder) -> None:
    """Makes sure that every tensor is a floating-point weight or part of a 4-bit one."""
    says_4_bit = folder.config.get("quantization_config") is not None
    if says_4_bit != folder.is_4_bit:
        problem = (
            "config.json says that its weights are in 4 bits, and they are not; remove quantization_config from it"
            if says_4_bit
            else f"{next(iter(folder.quant_states.values()))} is of 4 bits, of which config.json says nothing"
        )
        raise MODEL_DIRECTORY_INVALID(path=folder.path, problem=problem)
    for name, tensor in folder.tensors.items():
        packed = name in folder.quant_states or folder.is_part(name)
        if tensor.dtype in _FLOATS and name not in folder.quant_states:
            continue
        if not (packed and tensor.dtype == "U8"):
            raise MODEL_QUANTISED(path=folder.path, format=f"{tensor.dtype} ({name})", supported=FORMATS)
