"""Loads tokenizers and base models: the embedded demo, local directories, and the hub.

Weights come from safetensors only and no code of a model's author is ever run (`trust_remote_code` is off).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers import AutoModelForCausalLM as AutoModel
from transformers.utils.logging import disable_progress_bar

from engine import errors
from engine.assets import asset
from engine.models.base_changes import NO_CHANGES, BaseChanges, stretch_positions
from engine.models.grouped_heads import pool_key_value_heads

if TYPE_CHECKING:
    from engine.models.catalogue import ModelSpec
    from engine.models.placement import Placement


def load_tokenizer(spec: ModelSpec) -> PreTrainedTokenizerFast:
    """The model's fast tokenizer.

    Raises:
        EliteError: MODEL_DIRECTORY_INVALID, MODEL_NOT_AVAILABLE, MODEL_FAMILY_UNSUPPORTED.
    """
    source = _source(spec)
    _check_directory(source)
    if Path(source).is_dir() and not (Path(source) / "tokenizer.json").exists():
        # transformers would make an empty one up.
        raise errors.MODEL_DIRECTORY_INVALID(path=source, problem="it has no tokenizer.json")
    # For a Qwen2 model AutoTokenizer puts NFC normalisation into any tokenizer; the demo's own is lossless.
    loader = PreTrainedTokenizerFast if spec.name == "demo" else AutoTokenizer
    tokenizer = _from_library(spec, loader, source, {})
    if not getattr(tokenizer, "is_fast", False):
        raise errors.MODEL_FAMILY_UNSUPPORTED(
            family=spec.family,
            feature="the tokenizer",
            problem="it has no fast tokenizer (tokenizer.json)",
            supported="the models that `engine plan` lists",
        )
    return tokenizer


def load_model(spec: ModelSpec, placement: Placement, changes: BaseChanges = NO_CHANGES) -> PreTrainedModel:
    """The base model with its weights in place: frozen, without a cache of keys and values.

    Args:
        spec: What to load.
        placement: Where to, and in which numbers.
        changes: What to do to it before an adapter is put on it.

    Raises:
        EliteError: MODEL_DIRECTORY_INVALID, MODEL_NOT_AVAILABLE, MODEL_FAMILY_UNSUPPORTED.
    """
    source = _source(spec)
    _check_directory(source)
    model = _load_pretrained(spec, source, placement, changes)
    if changes.kv_heads is not None:
        pool_key_value_heads(model, changes.kv_heads)
    model.name_or_path = "demo" if spec.name == "demo" else source
    model.config.use_cache = False
    if placement.precision == "nf4":
        _keep_differentiable(model)
    model.requires_grad_(requires_grad=False)
    return model


def _source(spec: ModelSpec) -> str:
    """A directory's path or a hub id."""
    if spec.name == "demo":
        return str(asset("demo-model"))
    return str(spec.path) if spec.path else spec.hub_id or spec.name


def _check_directory(source: str) -> None:
    """Refuses a local directory that transformers would refuse in ten lines, or read with pickle."""
    path = Path(source)
    if not path.is_dir():
        return
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise errors.MODEL_DIRECTORY_INVALID(path=path, problem=f"config.json cannot be read ({error})") from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise errors.MODEL_DIRECTORY_INVALID(path=path, problem="config.json names no model_type")
    if any(path.glob("*.safetensors")):
        return
    pickled = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in path.glob(pattern))
    found = f"its weights are pickled ({pickled[0]}), which could run code" if pickled else "it holds no weights"
    raise errors.MODEL_DIRECTORY_INVALID(path=path, problem=found)


def _keep_differentiable(model: PreTrainedModel) -> None:
    """Keeps bitsandbytes from packing weights for inference.

    On CPUs with AVX512-BF16 it does so at the first forward without gradients (an evaluation), and from then on
    no gradient passes through the layer: training would go on, and learn nothing below the top layer.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _load_pretrained(spec: ModelSpec, source: str, placement: Placement, changes: BaseChanges) -> PreTrainedModel:
    if spec.name == "demo":
        disable_progress_bar()  # its 27 MB are there before a bar is drawn
    arguments: dict[str, Any] = {**_arguments(placement), "use_safetensors": True}
    if changes.yarn_factor is not None:
        arguments["config"] = _from_library(spec, AutoConfig, source, {})
        stretch_positions(arguments["config"], changes.yarn_factor)
    return _from_library(spec, AutoModel, source, arguments)


def _arguments(placement: Placement) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "dtype": placement.dtype,
        "device_map": {"": placement.device},
        "attn_implementation": "sdpa",
    }
    if placement.precision == "nf4":
        arguments["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=placement.dtype,
        )
    return arguments


def _from_library(spec: ModelSpec, loader: Any, source: str, arguments: dict[str, Any]) -> Any:
    """`loader.from_pretrained`, with the library's failures in one line each."""
    try:
        return loader.from_pretrained(source, trust_remote_code=False, **arguments)
    except (OSError, SafetensorError) as error:
        if Path(source).is_dir():
            raise errors.MODEL_DIRECTORY_INVALID(path=source, problem=_first_line(error)) from error
        raise errors.MODEL_NOT_AVAILABLE(name=source, problem=_first_line(error)) from error
    except (ValueError, KeyError) as error:
        raise errors.MODEL_FAMILY_UNSUPPORTED(
            family=spec.family,
            feature="transformers without remote code",
            problem=_first_line(error),
            supported="the models that `engine plan` lists",
        ) from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
