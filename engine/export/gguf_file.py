"""Writes a merged model as one GGUF file, as llama.cpp and the programs built on it load it.

The layout follows https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; names of tensors and keys come from the
gguf package. Tensors are written one after the other, so only the largest one has to fit in memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from engine.export import gguf_families, gguf_rope, k_quants
from engine.export.gguf_families import experts_of
from engine.export.gguf_tokenizer import read_tokenizer
from engine.export.merged import Tell, converted
from engine.export.weights import count
from engine.models.families import gguf_names, refuse

if TYPE_CHECKING:
    import numpy.typing as npt
    from gguf import GGMLQuantizationType, GGUFWriter

    from engine.errors import EliteError
    from engine.export.source import Merged, Source

_AT_ONCE = 1 << 24
"""Number of values converted at once."""
_BUFFERS = ("rotary_emb.inv_freq",)
"""Buffers that older conversions stored beside the weights. llama.cpp refuses a file with unexpected tensors."""
_ROUTER = "ffn_gate_inp.weight"
"""Chooses the experts of a token. Stays in fp32, as in llama.cpp, because a rounded one chooses others."""


@dataclass(frozen=True)
class _Planned:
    """One tensor of the file."""

    name: str
    source: str
    "Its name in the model; empty for a generated tensor."
    shape: tuple[int, ...]
    format: GGMLQuantizationType
    made: npt.NDArray[np.float32] | None = None
    stacked: tuple[str, ...] = ()
    "Names of the experts' tensors that it is made of, in the order of the experts."

    @property
    def bytes(self) -> int:
        from gguf import GGML_QUANT_SIZES

        block, size = GGML_QUANT_SIZES[self.format]
        return count(self.shape) // block * size


class GgufFile:
    """A GGUF file to be written."""

    def __init__(self, source: Source, model: Merged, dtype: str) -> None:
        """Plans every tensor.

        Raises:
            EliteError: MODEL_FAMILY_UNSUPPORTED, if GGUF cannot express the family or a part of this model;
                EXPORT_NEEDS.
        """
        if dtype in k_quants.K_QUANTS:
            k_quants.library()  # before a folder is made
        self._source, self._model, self._dtype = source, model, dtype
        config = model.config
        self._family = gguf_names(config.model_type)
        problem = gguf_families.obstacle(config) or gguf_rope.obstacle(config, self._family.architecture)
        if problem:
            raise unsupported(config.model_type, problem)
        self.tokenizer = read_tokenizer(source.result, config.vocab_size)
        self._tensors = list(self._plan())

    @property
    def bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.bytes for tensor in self._tensors)

    def write(self, path: Path, notify: Tell) -> None:
        """Writes the file.

        Raises:
            EliteError: EXPORT_DTYPE, EXPORT_DAMAGED.
            OSError: the file cannot be written.
        """
        from gguf import GGUFWriter

        writer = GGUFWriter(path, self._family.architecture)
        try:
            self._describe(writer)
            self.tokenizer.write(writer)
            for tensor in self._tensors:
                writer.add_tensor_info(
                    tensor.name, tensor.shape, np.dtype(np.float32), tensor.bytes, raw_dtype=tensor.format
                )
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for number, tensor in enumerate(self._tensors, start=1):
                writer.write_tensor_data(self._content(tensor))
                notify(number, len(self._tensors))
        finally:
            writer.close()

    # --- metadata ------------------------------------------------------------------------------------------

    def _describe(self, writer: GGUFWriter) -> None:
        from gguf import GGML_QUANT_VERSION, LlamaFileType

        config, source = self._model.config, self._source
        kinds = {
            "f32": LlamaFileType.ALL_F32,
            "fp16": LlamaFileType.MOSTLY_F16,
            "bf16": LlamaFileType.MOSTLY_BF16,
            "q8_0": LlamaFileType.MOSTLY_Q8_0,
            "q5_k_m": LlamaFileType.MOSTLY_Q5_K_M,
            "q4_k_m": LlamaFileType.MOSTLY_Q4_K_M,
        }
        head = gguf_rope.head_size(config)
        writer.add_name(source.name)
        if source.spec.licence != "unknown":
            writer.add_license(source.spec.licence)
        writer.add_file_type(kinds[self._dtype])
        writer.add_quantization_version(GGML_QUANT_VERSION)
        writer.add_vocab_size(config.vocab_size)
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(head)
        writer.add_value_length(head)
        if config.model_type == "starcoder2":
            writer.add_layer_norm_eps(config.norm_epsilon)
        else:
            writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        if experts := experts_of(config):
            writer.add_expert_count(experts)
            writer.add_expert_used_count(config.num_experts_per_tok)
            writer.add_expert_feed_forward_length(config.moe_intermediate_size)
        gguf_families.describe(writer, config)
        gguf_rope.describe(writer, config)

    # --- tensors -------------------------------------------------------------------------------------------

    def _plan(self) -> Iterator[_Planned]:
        from gguf import MODEL_ARCH, GGMLQuantizationType, get_tensor_name_map

        config, weights = self._model.config, self._model.weights
        names = get_tensor_name_map(MODEL_ARCH[self._family.architecture.upper()], config.num_hidden_layers)
        single = GGMLQuantizationType.F32
        for made in gguf_rope.divisors(config):
            yield _Planned(made[0], "", made[1].shape, single, made[1])
        experts: dict[str, list[tuple[int, str]]] = {}
        for name in weights.names():
            if name.endswith(_BUFFERS):
                continue
            if part := _EXPERT.fullmatch(name):
                experts.setdefault(f"{part[1]}.{part[3]}", []).append((int(part[2]), name))
                continue
            found = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if found is None:
                raise unsupported(config.model_type, f"GGUF has no name for its {name}")
            shape = weights.shape(name)
            # Norms and biases stay in fp32, as llama.cpp requires; they are small.
            yield _Planned(found, name, shape, self._format(found, shape[-1]) if len(shape) > 1 else single)
        for name, numbered in experts.items():
            found = names.get_name(name)
            stacked = tuple(source for _, source in sorted(numbered))
            if found is None or len(stacked) != experts_of(config):
                raise unsupported(config.model_type, f"GGUF has no name for its {numbered[0][1]}")
            shape = (len(stacked), *weights.shape(stacked[0]))
            matrix = f"{found}.weight"
            yield _Planned(matrix, name, shape, self._format(matrix, shape[-1]), stacked=stacked)

    def _format(self, name: str, row: int) -> GGMLQuantizationType:
        """Returns the format of a matrix by its name in the file and the length of its rows."""
        from gguf import GGMLQuantizationType

        if name.endswith(_ROUTER):
            return GGMLQuantizationType.F32
        if self._dtype in k_quants.K_QUANTS:
            layers = self._model.config.num_hidden_layers
            tied = "lm_head.weight" not in self._model.weights.names()
            return k_quants.narrower(k_quants.format_of(name, self._dtype, layers, tied=tied), row)

        formats = {
            "f32": GGMLQuantizationType.F32,
            "fp16": GGMLQuantizationType.F16,
            "bf16": GGMLQuantizationType.BF16,
            "q8_0": GGMLQuantizationType.Q8_0,
        }
        return k_quants.narrower(formats[self._dtype], row)

    def _content(self, planned: _Planned) -> npt.NDArray[Any]:
        if planned.made is not None:
            return planned.made
        if planned.stacked:
            return np.stack([_in_format(planned, self._model.weights.tensor(name)) for name in planned.stacked])
        tensor = self._model.weights.tensor(planned.source)
        config = self._model.config
        layer = planned.source.rpartition(".")[0]
        if self._family.norm_offset and layer.endswith("norm"):
            tensor = tensor.float() + self._family.norm_offset
        if self._family.interleaved and layer.endswith("q_proj"):
            tensor = interleaved(tensor, config.num_attention_heads)
        elif self._family.interleaved and layer.endswith("k_proj"):
            tensor = interleaved(tensor, config.num_key_value_heads)
        return _in_format(planned, tensor)


def _in_format(planned: _Planned, tensor: torch.Tensor) -> npt.NDArray[Any]:
    """Converts a tensor to its file format, some rows at a time, since an fp32 embedding can be gigabytes."""
    from gguf import quantize

    rows = max(1, _AT_ONCE // tensor.shape[-1]) if tensor.ndim > 1 else len(tensor)
    made: list[npt.NDArray[Any]] = []
    for part in tensor.split(rows):
        if planned.format.name == "F16":
            made.append(converted(planned.source, part, "fp16", "gguf").numpy())
        else:
            whole = converted(planned.source, part, "f32", "gguf").numpy()
            known = planned.format.name.endswith("_K")
            made.append((k_quants.quantize if known else quantize)(whole, planned.format))
    return np.ascontiguousarray(np.concatenate(made))


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorders rows of each head from (first half, second half) to pairs. Shape (heads · head_dim, ...), unchanged."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)


def pairs_apart(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Reverses `interleaved`. Shape (heads · head_dim, ...), unchanged."""
    pairs = weight.reshape(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:])
    return pairs.transpose(1, 2).reshape(weight.shape)


def unsupported(family: str, problem: str) -> EliteError:
    """Builds the error for a model that cannot be written as GGUF."""
    return refuse(family, "gguf", problem)


_EXPERT = re.compile(r"(model\.layers\.\d+\.mlp\.experts)\.(\d+)\.((?:gate|up|down)_proj)\.weight")
"""Name of one expert's tensor: GGUF holds those of a layer in one."""
