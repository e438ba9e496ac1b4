"""Writes a model's folder again with its linear layers in 4 bits, one tensor at a time.

The copy is an ordinary 4-bit folder, as transformers and bitsandbytes store one (NF4 with double quantisation, QLoRA,
arXiv 2305.14314), with the stored names of the original. What is not quantised is cast, as the library casts it where
it quantises itself. At no time is more than one 16-bit tensor and one packed decoder layer in memory.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from engine import regular_file
from engine.models.folder import INDEX
from engine.models.placement import Placement
from engine.models.safetensors_header import StoredTensor
from engine.models.weight_map import WeightMap

_LAYER = re.compile(r"^(.*?\.\d+)\.")
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_COPIED = ("generation_config.json",)
"""Files besides the configuration that transformers reads with a model."""

PACKED_SHARE = 0.6
"""Upper bound of a packed weight's bytes, as bytes per value: 4.127 bits, and the entries of the header."""


def quantisation(placement: Placement) -> Any:
    """Returns transformers' BitsAndBytesConfig of every 4-bit model: NF4 with double quantisation."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=placement.dtype,
    )


@dataclass(frozen=True)
class PackedForm:
    """What becomes of each stored tensor."""

    modules: Mapping[str, Any]
    "Name of each tensor that is quantised → its module, on the meta device."
    dtypes: Mapping[str, torch.dtype]
    "Name of each tensor → the dtype that it is cast to, before it is quantised or instead."


def packed_form(weights: WeightMap, config: Any, placement: Placement) -> PackedForm | None:
    """Asks the library which weights it would quantise, and what it would cast the others to.

    Returns None where a quantised weight is assembled from several tensors, or is stored transposed: those are left to
    the library.
    """
    import bitsandbytes as bnb
    from transformers import AutoModelForCausalLM
    from transformers.core_model_loading import build_glob_alternation
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.auto import AutoHfQuantizer

    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config
        model = made(copy.deepcopy(config), dtype=placement.dtype, trust_remote_code=False)
    quantizer = AutoHfQuantizer.from_config(quantisation(placement), pre_quantized=False)
    quantizer.preprocess_model(model=model, dtype=placement.dtype, device_map={"": "cpu"})
    modules: dict[str, Any] = {}
    for name, module in model.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            stored = weights.whole.get(f"{name}.weight")
            if stored is None or issubclass(module.source_cls, Conv1D):
                return None
            modules[stored.name] = module
    dtypes = dict.fromkeys(weights.folder.tensors, placement.dtype)
    plan = model._get_dtype_plan(placement.dtype)
    patterns, groups, _ = build_glob_alternation(list(plan))
    own = {name: value.dtype for name, value in model.state_dict().items()}
    for name, parts in [*((name, (one,)) for name, one in weights.whole.items()), *weights.joined.items()]:
        if plan and (match := patterns.search(name)):
            dtypes |= dict.fromkeys((part.name for part in parts), plan[groups[str(match.lastgroup)]])
        elif parts[0].name not in modules:
            dtypes |= dict.fromkeys((part.name for part in parts), own.get(name, placement.dtype))
    return PackedForm(modules, dtypes)


def packed_bytes(weights: WeightMap, form: PackedForm) -> int:
    """Returns an upper bound of the copy's bytes."""
    return sum(
        round(math.prod(tensor.shape) * (PACKED_SHARE if name in form.modules else form.dtypes[name].itemsize))
        for name, tensor in weights.folder.tensors.items()
    )


def write_four_bit(
    target: Path, weights: WeightMap, form: PackedForm, placement: Placement, device: torch.device
) -> None:
    """Writes the 4-bit copy.

    Args:
        target: An empty folder.
        weights: Weights of the model in its files.
        form: What becomes of each tensor.
        placement: Its compute dtype is that of the dequantised weights.
        device: Quantises.

    Raises:
        OSError: a file cannot be read or written.
    """
    where: dict[str, str] = {}
    total = 0
    for number, tensors in enumerate(_shards(weights)):
        name = f"part-{number:05d}.safetensors"
        made: dict[str, Tensor] = {}
        for stored in tensors:
            value = _read(stored).to(form.dtypes[stored.name])
            module = form.modules.get(stored.name)
            made |= {stored.name: value} if module is None else _packed(stored.name, value, module, device)
            del value
        total += sum(tensor.nbytes for tensor in made.values())
        where |= dict.fromkeys(made, name)
        save_file(made, target / name, metadata={"format": "pt"})
    _write_json(target / INDEX, {"metadata": {"total_size": total}, "weight_map": where})
    source = weights.folder.path
    config = regular_file.read_object(source / "config.json", follow=True, bounded=False)
    _write_json(target / "config.json", {**config, "quantization_config": quantisation(placement).to_dict()})
    for name in _COPIED:
        if (source / name).is_file():
            (target / name).write_bytes((source / name).read_bytes())


def _shards(weights: WeightMap) -> Iterator[list[StoredTensor]]:
    """Yields the tensors of each decoder layer, and each tensor outside of the layers alone."""
    layers: dict[str, list[StoredTensor]] = {}
    for name, tensor in weights.folder.tensors.items():
        layer = _LAYER.match(name)
        layers.setdefault(layer.group(1) if layer else name, []).append(tensor)
    yield from layers.values()


def _read(stored: StoredTensor) -> Tensor:
    """Reads a tensor without mapping its file, whose pages would count as this process's memory."""
    raw = torch.empty(stored.size, dtype=torch.uint8)
    with stored.file.open("rb", buffering=0) as file:
        file.seek(stored.start)
        into, done = raw.numpy().data, 0
        while done < stored.size:
            count = file.readinto(into[done:])
            if not count:
                raise OSError(f"{stored.file.name} is cut off")
            done += count
    return raw.view(_DTYPES[stored.dtype]).view(stored.shape)


def _packed(name: str, value: Tensor, module: Any, device: torch.device) -> dict[str, Tensor]:
    """Quantises one weight; returns its codes, scales and quantisation state by the names that bitsandbytes reads."""
    import bitsandbytes as bnb

    made = bnb.nn.Params4bit(value.to(device), requires_grad=False, **module.weight.__dict__).to(device)
    state = {f"{name}.{key}": part.cpu() for key, part in made.quant_state.as_dict(packed=True).items()}
    return {name: made.data.cpu(), **state}


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
