"""Writes a merged model for transformers: safetensors shards of a gibibyte, configuration, tokenizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from engine.errors.export import EXPORT_DAMAGED, EXPORT_DTYPE
from engine.export.source import Merged, Source, read_json, trained_encoder
from engine.export.weights import Weights, count

if TYPE_CHECKING:
    from engine.tokenization.encoder import Encoder

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "f32": torch.float32}
PIECE_BYTES = 1 << 30
"""Size of one shard. Merging holds about two of them in memory, and the largest tensor in fp32."""
_WITH_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
Tell = Callable[[int, int], None]
"""Called with the tensors done and their total."""


def merged_bytes(weights: Weights, dtype: str) -> int:
    """Returns the bytes that the files of a merged model take."""
    return sum(count(weights.shape(name)) for name in weights.names()) * DTYPES[dtype].itemsize


def write_merged(folder: Path, source: Source, model: Merged, dtype: str, notify: Tell) -> None:
    """Writes everything but the card into an existing folder.

    Raises:
        EliteError: EXPORT_DTYPE, when values overflow fp16; EXPORT_DAMAGED, when they are not finite.
        OSError: the folder cannot be written.
    """
    pieces = list(_pieces(model.weights, DTYPES[dtype].itemsize))
    names = ["model.safetensors"]
    if len(pieces) > 1:
        names = [f"model-{number:05}-of-{len(pieces):05}.safetensors" for number in range(1, len(pieces) + 1)]
    where: dict[str, str] = {}
    total = len(model.weights.names())
    for file, piece in zip(names, pieces, strict=True):
        tensors = {}
        for name in piece:
            tensors[name] = converted(name, model.weights.tensor(name), dtype, "merged")
            where[name] = file
            notify(len(where), total)
        save_file(tensors, folder / file, metadata={"format": "pt"})
    if len(pieces) > 1:
        index = {"metadata": {"total_size": merged_bytes(model.weights, dtype)}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    encoder = trained_encoder(source.result)
    model.config.dtype = DTYPES[dtype]
    model.config.eos_token_id = encoder.ends_among(model.config.eos_token_id)
    if encoder.first:
        model.config.bos_token_id = encoder.first[0]
    model.config.save_pretrained(folder)
    _write_generation(model.base / "generation_config.json", folder, encoder)
    copy_tokenizer(source.result, folder)


def _write_generation(base: Path, folder: Path, encoder: Encoder) -> None:
    """Writes the base's generation settings, if it has any, with the tokens that training used."""
    settings = read_json(base)
    if not settings:
        return  # transformers takes them from config.json
    settings["eos_token_id"] = encoder.ends_among(settings.get("eos_token_id"))
    if encoder.first:
        settings["bos_token_id"] = encoder.first[0]
    (folder / base.name).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def converted(name: str, tensor: torch.Tensor, dtype: str, target: str) -> torch.Tensor:
    """Converts a tensor to another format.

    Args:
        name: Its name, for errors.
        tensor: The tensor, of any shape.
        dtype: Key of DTYPES.
        target: Kind of export, for errors.

    Returns:
        A contiguous tensor of the same shape.

    Raises:
        EliteError: EXPORT_DTYPE when a value overflows fp16; EXPORT_DAMAGED when one is not finite.
    """
    made = tensor.to(DTYPES[dtype]).contiguous()
    if not torch.isfinite(made).all():
        if dtype == "fp16" and torch.isfinite(tensor).all():
            problem = f"{name} holds {tensor.abs().max().item():.3g}, and fp16 ends at 65504"
            raise EXPORT_DTYPE(dtype=dtype, target=target, problem=problem, supported="bf16, f32")
        raise EXPORT_DAMAGED(path=name, problem="it holds numbers that are not finite")
    return made


def copy_tokenizer(result: Path, folder: Path) -> None:
    """Copies the tokenizer's files, as the run saved them."""
    for name in _WITH_TOKENIZER:
        if (result / name).is_file():  # no device, which would never end
            shutil.copyfile(result / name, folder / name)


def _pieces(weights: Weights, itemsize: int) -> Iterator[list[str]]:
    piece: list[str] = []
    size = 0
    for name in weights.names():
        bytes_ = count(weights.shape(name)) * itemsize
        if piece and size + bytes_ > PIECE_BYTES:
            yield piece
            piece, size = [], 0
        piece.append(name)
        size += bytes_
    if piece:
        yield piece
