"""Quantises tensors to llama.cpp's K-quants: blocks of 256 weights with scales of their own.

The arithmetic is llama.cpp's own, from the library in the xllamacpp package; the gguf package writes these formats but
cannot compute them. Which tensor gets which format follows llama.cpp's mixes of the same name: most weights in 4 or 5
bits, and in 6 those that cost the most accuracy (the head, the attention's values and the MLP's last product, the
latter two in a part of the layers).
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.errors import EliteError
from engine.errors.export import EXPORT_NEEDS

if TYPE_CHECKING:
    import numpy.typing as npt
    from gguf import GGMLQuantizationType

K_QUANTS = ("q4_k_m", "q5_k_m")
"""Names of the mixes, as llama.cpp and Ollama write them in small letters."""
_LIBRARY = "xllamacpp"
_LAYER = re.compile(r"blk\.(\d+)\.(.+)\.weight")
_IN_SIX_BITS = ("attn_v", "ffn_down", "ffn_down_exps")


def format_of(name: str, mix: str, layers: int, *, tied: bool) -> GGMLQuantizationType:
    """Returns the format of a matrix in a mix.

    Args:
        name: The tensor's name in the file.
        mix: One of K_QUANTS.
        layers: Number of the model's layers.
        tied: Whether the head shares the embedding's weights.
    """
    from gguf import GGMLQuantizationType as Format

    usual, fused = (Format.Q4_K, Format.Q5_K) if mix == "q4_k_m" else (Format.Q5_K, Format.Q6_K)
    if name == "output.weight" or (tied and name == "token_embd.weight"):
        return Format.Q6_K
    layer = _LAYER.fullmatch(name)
    if layer is None:
        return usual
    if layer[2] == "attn_qkv":
        return fused
    return Format.Q6_K if layer[2] in _IN_SIX_BITS and _needs_more(int(layer[1]), layers) else usual


def _needs_more(layer: int, layers: int) -> bool:
    """Whether a layer is in the first or the last eighth, or each third between them."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def narrower(format: GGMLQuantizationType, row: int) -> GGMLQuantizationType:  # noqa: A002 - the field's word
    """Returns the format for rows that blocks of 256 weights do not divide: one with blocks of 32, else 16 bits."""
    from gguf import GGML_QUANT_SIZES
    from gguf import GGMLQuantizationType as Format

    if row % GGML_QUANT_SIZES[format][0] == 0:
        return format
    smaller = {Format.Q4_K: Format.Q5_0, Format.Q5_K: Format.Q5_1, Format.Q6_K: Format.Q8_0}.get(format)
    return smaller if smaller is not None and row % GGML_QUANT_SIZES[smaller][0] == 0 else Format.F16


def quantize(rows: npt.NDArray[np.float32], format: GGMLQuantizationType) -> npt.NDArray[np.uint8]:  # noqa: A002
    """Quantises a matrix.

    Args:
        rows: Weights, shape (rows, row length); the length is a multiple of the format's block.
        format: A K-quant.

    Returns:
        The blocks, shape (rows, bytes of a row).
    """
    from gguf import GGML_QUANT_SIZES

    block, size = GGML_QUANT_SIZES[format]
    rows = np.ascontiguousarray(rows, np.float32)
    count, length = rows.shape
    found = np.empty((count, length // block * size), np.uint8)
    library()(int(format), rows.ctypes.data, found.ctypes.data, 0, count, length, None)
    return found


@functools.cache
def library() -> Any:
    """Returns llama.cpp's ggml_quantize_chunk.

    Raises:
        EliteError: EXPORT_NEEDS.
    """
    found = importlib.util.find_spec(_LIBRARY)
    if found is None or found.origin is None:
        raise _missing(f"the package {_LIBRARY} is not installed")
    file = next(Path(found.origin).parent.glob("xllamacpp*.so"), None)
    try:
        chunk = ctypes.CDLL(str(file)).ggml_quantize_chunk
    except (OSError, AttributeError) as error:
        raise _missing(f"the package {_LIBRARY} cannot be used here: {error}") from error
    chunk.restype = ctypes.c_size_t
    rows = ctypes.c_int64
    chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, rows, rows, rows, ctypes.c_void_p]
    return chunk


def _missing(problem: str) -> EliteError:
    return EXPORT_NEEDS(dtype=" and ".join(K_QUANTS), problem=problem)
