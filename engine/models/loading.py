"""Loads tokenizers and base models from the embedded demo, local directories, and the hub.

Weights come from safetensors only, and code of a model's author never runs (`trust_remote_code` is off).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers import AutoModelForCausalLM as AutoModel
from transformers.utils import cached_file
from transformers.utils.logging import disable_progress_bar

from engine import regular_file
from engine.assets import asset
from engine.errors import EliteError
from engine.errors.model import MODEL_DIRECTORY_INVALID, MODEL_FAMILY_UNSUPPORTED, MODEL_NOT_AVAILABLE
from engine.models.base_changes import NO_CHANGES, BaseChanges, stretch_positions
from engine.models.expert_stacks import is_packable_stack, quantised_stack
from engine.models.experts import quantise_experts
from engine.models.families import DROPOUTS
from engine.models.folder import ModelFolder, open_folder
from engine.models.four_bit_cache import Notify, four_bit_copy
from engine.models.four_bit_folder import quantisation
from engine.models.grouped_heads import pool_key_value_heads
from engine.models.hub import find_folder
from engine.models.layers import decoder_layers
from engine.models.loaded import check_loaded
from engine.models.rope_tables import keep_tables_exact
from engine.models.tokenizer_files import FILE as TOKENIZER_FILE
from engine.models.tokenizer_files import (
    check_converted,
    has_tokenizer,
    name_end,
    read_file,
    stored_vocabulary,
    use_file,
)
from engine.models.vocabulary import check_vocabulary
from engine.models.weight_map import WeightMap, map_weights
from engine.models.wrappers import text_settings

if TYPE_CHECKING:
    from engine.models.catalogue import ModelSpec
    from engine.models.placement import Placement


_BNB_4_BIT = "bitsandbytes_4bit"
"""transformers' name of the quantiser."""


def load_tokenizer(spec: ModelSpec) -> PreTrainedTokenizerFast:
    """Loads the model's fast tokenizer from its tokenizer.json; converts other files if there is none.

    Raises:
        EliteError: MODEL_DIRECTORY_INVALID, MODEL_NOT_AVAILABLE, MODEL_FAMILY_UNSUPPORTED.
    """
    source = _source(spec)
    if Path(source).is_dir():
        open_folder(Path(source))
    if Path(source).is_dir() and not has_tokenizer(Path(source)):
        raise MODEL_DIRECTORY_INVALID(path=source, problem=f"it has no {TOKENIZER_FILE}")
    _check_settings(Path(source))
    file = _from_library(spec, _Cached(TOKENIZER_FILE), source, {})
    try:
        if file:
            own = read_file(Path(file))
            tokenizer = _from_library(spec, PreTrainedTokenizerFast, source, {})
            use_file(tokenizer, own)
        else:
            wanted = stored_vocabulary(Path(source)) if Path(source).is_dir() else {}
            tokenizer = _from_library(spec, AutoTokenizer, source, {})
            check_converted(tokenizer, wanted, Path(source))
    except (EliteError, MemoryError):
        raise
    except Exception as error:  # from transformers, of any kind, by what the settings hold
        problem = f"its tokenizer's settings cannot be read ({_first_line(error)})"
        raise MODEL_DIRECTORY_INVALID(path=source, problem=problem) from error
    config = _from_library(spec, _Cached("config.json"), source, {})
    settings = regular_file.read_object(Path(config), follow=True, bounded=False) if config else {}
    name_end(tokenizer, text_settings(settings), source)
    check_vocabulary(source, tokenizer, spec.vocab_size)
    return tokenizer


def _check_settings(folder: Path) -> None:
    """Makes sure that each file of a tokenizer's settings is an object of JSON: the library does not name the file."""
    for name in _SETTINGS:
        if (folder / name).exists():
            try:
                regular_file.read_object(folder / name, follow=True, bounded=False)
            except (OSError, ValueError, RecursionError) as error:
                said = "it is nested too deeply" if isinstance(error, RecursionError) else error
                raise MODEL_DIRECTORY_INVALID(path=folder, problem=f"{name} cannot be read ({said})") from error


class _Cached:
    """Finds a file of a model, on disk or on the hub; None if there is no such file."""

    def __init__(self, name: str) -> None:
        self._name = name

    def from_pretrained(self, source: str, **_: Any) -> str | None:
        """See _from_library."""
        found: str | None = cached_file(source, self._name, _raise_exceptions_for_missing_entries=False)
        return found


def load_model(
    spec: ModelSpec,
    placement: Placement,
    changes: BaseChanges = NO_CHANGES,
    *,
    quantise_on: torch.device | None = None,
    notify: Notify = lambda _: None,
) -> PreTrainedModel:
    """Loads the base model with its weights, frozen and without a KV cache.

    A model that is quantised here is kept as a 4-bit copy (engine.models.four_bit_cache). On the CPU its weights stay
    mapped to that copy's files, and take memory only as they are read.

    Args:
        spec: The model to load.
        placement: Its device and precision.
        changes: Changes to make before an adapter is attached.
        quantise_on: Device that quantises weights to 4 bits, one after the other; None for the placement's.
        notify: Called when a 4-bit copy is made, or cannot be.

    Raises:
        EliteError: MODEL_DIRECTORY_INVALID, MODEL_QUANTISED, MODEL_NOT_AVAILABLE, MODEL_FAMILY_UNSUPPORTED.
    """
    weights, config = open_weights(spec)
    original = str(weights.folder.path)
    copy = None
    with contextlib.ExitStack() as stack:
        if placement.precision == "nf4":
            if not weights.folder.is_4_bit:
                device = quantise_on or placement.device
                copy = stack.enter_context(four_bit_copy(weights, config, placement, device, notify=notify))
            if copy is not None:
                weights, config = _open_folder(spec, copy)
            else:
                stack.enter_context(_quantising_on(quantise_on or placement.device))
        model = _load_pretrained(spec, weights, config, placement, changes)
    if copy is not None:
        model.config._name_or_path = original
    if changes.kv_heads is not None:
        pool_key_value_heads(model, changes.kv_heads)
    model.name_or_path = "demo" if spec.name == "demo" else _source(spec)
    model.config.use_cache = False
    keep_tables_exact(model)
    if placement.precision == "nf4" or weights.folder.is_4_bit:
        _keep_differentiable(model)
        for layer in decoder_layers(model):
            quantise_experts(layer, placement.device, quantise_on)  # those that a file of 4-bit linear layers holds
    model.requires_grad_(requires_grad=False)
    return model


def _source(spec: ModelSpec) -> str:
    """Returns a directory's path or a hub id."""
    if spec.name == "demo":
        return str(asset("demo-model"))
    return str(spec.path) if spec.path else spec.hub_id or spec.name


def open_weights(spec: ModelSpec) -> tuple[WeightMap, PreTrainedConfig]:
    """Maps the stored tensors to a model's weights and loads its configuration. Downloads missing files from the hub.

    Raises:
        EliteError: MODEL_DIRECTORY_INVALID, MODEL_QUANTISED, MODEL_NOT_AVAILABLE, MODEL_FAMILY_UNSUPPORTED.
    """
    return _open_folder(spec, find_folder(spec))


def _open_folder(spec: ModelSpec, path: Path) -> tuple[WeightMap, PreTrainedConfig]:
    folder = open_folder(path)
    whole = _from_library(spec, AutoConfig, str(folder.path), {})
    try:
        config = text_config(whole, folder)
        return map_weights(folder, config), config
    except (EliteError, MemoryError):
        raise
    except Exception as error:  # of any kind, by what config.json holds
        raise _unsupported(spec, error) from error


def text_config(config: PreTrainedConfig, folder: ModelFolder) -> PreTrainedConfig:
    """Returns the configuration of a folder's text model: that of the whole model, except in a multimodal wrapper."""
    if not folder.renames:
        return config
    inner: PreTrainedConfig = config.get_text_config(decoder=True)
    inner.tie_word_embeddings = bool(folder.config.get("tie_word_embeddings", inner.tie_word_embeddings))
    if "quantization_config" in folder.config:
        inner.quantization_config = folder.config["quantization_config"]
    return inner


def _keep_differentiable(model: PreTrainedModel) -> None:
    """Keeps bitsandbytes from packing weights for inference.

    On CPUs with AVX512-BF16 it does so at the first forward without gradients (an evaluation). From then on, no
    gradient passes through the layer, so training would continue but change nothing below the top layer.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _load_pretrained(
    spec: ModelSpec, weights: WeightMap, config: PreTrainedConfig, placement: Placement, changes: BaseChanges
) -> PreTrainedModel:
    if spec.name == "demo":
        disable_progress_bar()  # its 27 MB are there before a bar is drawn
    for name in DROPOUTS:
        if getattr(config, name, None):
            setattr(config, name, 0.0)
    if changes.yarn_factor is not None:
        stretch_positions(config, changes.yarn_factor)
    arguments: dict[str, Any] = {
        "config": config,
        "use_safetensors": True,
        "output_loading_info": True,
        **_arguments(placement, config),
    }
    if weights.folder.renames:
        arguments["key_mapping"] = dict(weights.folder.renames)
    if weights.folder.is_4_bit:
        # The file determines the quantisation, the device the compute dtype.
        config.quantization_config["bnb_4bit_compute_dtype"] = str(placement.dtype).removeprefix("torch.")
        arguments.pop("quantization_config", None)
    model, info = _from_library(spec, AutoModel, str(weights.folder.path), arguments)
    check_loaded(model, weights, info)
    loaded: PreTrainedModel = model
    return loaded


def _arguments(placement: Placement, config: PreTrainedConfig) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "dtype": placement.dtype,
        "device_map": {"": placement.device},
        "attn_implementation": _attention(config),
    }
    if placement.precision == "nf4":
        arguments["quantization_config"] = quantisation(placement)
    return arguments


def _attention(config: PreTrainedConfig) -> str:
    """Returns "sdpa", or "eager" for families that transformers does not run by SDPA, such as those with sinks."""
    kind = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    return "sdpa" if getattr(kind, "_supports_sdpa", True) else "eager"


@contextlib.contextmanager
def _quantising_on(device: torch.device) -> Iterator[None]:
    """Within it, transformers quantises each weight on `device`, and moves codes and scales to the weight's home.

    It reads one weight at a time when it quantises, so that neither place ever holds the model in 16 bits. The codes
    are those of a model that is resident on `device`. Experts are quantised as well, which transformers leaves alone.
    """
    from transformers.integrations.bitsandbytes import Bnb4bitQuantize
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
    from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

    class Quantize(Bnb4bitQuantize):  # type: ignore[misc]
        def convert(self, input_dict: dict[str, Any], **context: Any) -> dict[str, torch.Tensor]:
            weights = {name: found[0] if isinstance(found, list) else found for name, found in input_dict.items()}
            model: Any = context["model"]
            stacks = {name: weight for name, weight in weights.items() if is_packable_stack(model, name)}
            rest = {name: weight.to(device) for name, weight in weights.items() if name not in stacks}
            quantised = super().convert(rest, **context) if rest else {}
            for name, stack in stacks.items():
                experts = (expert.to(device) for expert in stack)
                quantised[name] = quantised_stack(experts, tuple(stack.shape), stack.dtype)
            return {name: codes.to(weights[name].device) for name, codes in quantised.items()}

    class Quantizer(Bnb4BitHfQuantizer):  # type: ignore[misc]
        def param_needs_quantization(self, model: Any, param_name: str, **options: Any) -> bool:
            of_linear: bool = super().param_needs_quantization(model, param_name, **options)
            return of_linear or is_packable_stack(model, param_name)

        def get_quantize_ops(self) -> Quantize:
            return Quantize(self)

    usual = AUTO_QUANTIZER_MAPPING[_BNB_4_BIT]
    AUTO_QUANTIZER_MAPPING[_BNB_4_BIT] = Quantizer
    try:
        yield
    finally:
        AUTO_QUANTIZER_MAPPING[_BNB_4_BIT] = usual


def _from_library(spec: ModelSpec, loader: Any, source: str, arguments: dict[str, Any]) -> Any:
    """Calls `loader.from_pretrained` and turns the library's exceptions into one-line errors."""
    try:
        return loader.from_pretrained(source, trust_remote_code=False, **arguments)
    except (OSError, SafetensorError) as error:
        if Path(source).is_dir():
            raise MODEL_DIRECTORY_INVALID(path=source, problem=_first_line(error)) from error
        raise MODEL_NOT_AVAILABLE(name=source, problem=_first_line(error)) from error
    except (EliteError, MemoryError):
        raise
    except Exception as error:  # of any kind, by what config.json holds
        if isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)):
            raise
        what = _READ_BY.get(loader) if Path(source).is_dir() else None
        of_family = loader is AutoConfig and type(error) is ValueError  # an unknown one, or code of its own
        if what is not None and not of_family:
            problem = f"{what} cannot be read ({_first_line(error)})"
            raise MODEL_DIRECTORY_INVALID(path=source, problem=problem) from error
        raise _unsupported(spec, error) from error


_READ_BY = {
    AutoConfig: "config.json",
    AutoTokenizer: "its tokenizer's settings",
    PreTrainedTokenizerFast: "its tokenizer's settings",
}
"""What a class of the library reads that fails for what a file says, not for the family."""
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


_OUT_OF_MEMORY = re.compile("memory|CUDA|alloc", re.IGNORECASE)
"""A RuntimeError that is the machine's, not the model's."""


def _unsupported(spec: ModelSpec, error: Exception) -> EliteError:
    return MODEL_FAMILY_UNSUPPORTED(
        family=spec.family,
        feature="transformers without remote code",
        problem=_first_line(error),
        supported="the models that `engine plan` lists",
    )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines()]
    if isinstance(error, KeyError) and error.args and isinstance(said := error.args[0], str):
        # The library looks a value up, and says nothing but the value.
        return said if " " in said else f"it does not know {said!r}"
    if lines[1:] and lines[0].endswith(":"):
        return f"{lines[0]} {lines[1]}".rstrip(".")
    return lines[0].rstrip(".") if lines else type(error).__name__
