"""Writes a LoRA adapter as a GGUF file, which llama.cpp adds to a base as it runs (`--lora`, `/lora-adapters`).

The layout is that of llama.cpp's own converter: for each changed weight of the base its two factors, under the
weight's name in the base's file with `.lora_a` and `.lora_b`; llama.cpp scales their product by alpha / rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.export.gguf_file import interleaved, unsupported
from engine.export.merging import Update
from engine.models.base_changes import NO_CHANGES
from engine.models.families import gguf_names

if TYPE_CHECKING:
    import torch

    from engine.export.merging import StackUpdate
    from engine.export.source import Merged, Source


@dataclass(frozen=True)
class _Factors:
    """One weight's update, as it is written."""

    name: str
    "Name of the base's tensor."
    a: torch.Tensor
    "Shape (rank, inputs), fp32."
    b: torch.Tensor
    "Shape (outputs, rank), fp32."


class GgufAdapter:
    """A GGUF file of an adapter to be written."""

    def __init__(self, source: Source, model: Merged) -> None:
        """Names every update as the base's file does.

        Raises:
            EliteError: MODEL_FAMILY_UNSUPPORTED, where llama.cpp cannot add the adapter to the base's own file.
        """
        config = model.config
        self._source, self._family = source, gguf_names(config.model_type)
        if source.changes != NO_CHANGES:
            raise unsupported(config.model_type, "its base was changed before training; export it with --to gguf")
        if model.weights.unties_head:
            raise unsupported(config.model_type, "llama.cpp would change its embedding too; export it with --to gguf")
        self._factors = [self._named(config, name, update) for name, update in model.weights.updates.items()]

    def _named(self, config: Any, name: str, update: Update | StackUpdate) -> _Factors:
        from gguf import MODEL_ARCH, get_tensor_name_map

        family, layers = config.model_type, config.num_hidden_layers
        if not isinstance(update, Update):
            raise unsupported(family, "its adapter changes experts; export it with --to gguf")
        names = get_tensor_name_map(MODEL_ARCH[self._family.architecture.upper()], layers)
        found = names.get_name(name, try_suffixes=(".weight",))
        if found is None or update.transposed:
            raise unsupported(family, f"llama.cpp cannot add an update to {name}; export it with --to gguf")
        if update.magnitude is not None:
            raise unsupported(family, "llama.cpp adds no DoRA; export it with --to gguf")
        b = update.b
        if self._family.interleaved and name.endswith("q_proj.weight"):
            b = interleaved(b, config.num_attention_heads)
        elif self._family.interleaved and name.endswith("k_proj.weight"):
            b = interleaved(b, config.num_key_value_heads)
        # llama.cpp divides by the rank; alpha is 1, so that every update carries its own scale.
        return _Factors(found, update.a, b * (update.scale * b.shape[1]))

    @property
    def bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(4 * (one.a.numel() + one.b.numel()) for one in self._factors)

    def write(self, path: Path) -> None:
        """Writes the file.

        Raises:
            OSError: the file cannot be written.
        """
        from gguf import GGUFType, GGUFWriter, Keys

        writer = GGUFWriter(path, self._family.architecture)
        try:
            writer.add_type(GGUFType.ADAPTER)
            writer.add_string("adapter.type", "lora")
            writer.add_float32(Keys.Adapter.LORA_ALPHA, 1.0)
            writer.add_name(self._source.name)
            for one in self._factors:
                writer.add_tensor(f"{one.name}.lora_a", one.a.contiguous().numpy())
                writer.add_tensor(f"{one.name}.lora_b", one.b.contiguous().numpy())
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
