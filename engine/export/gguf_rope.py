"""Converts rotary settings to GGUF, and computes the rotary table that llama.cpp derives from them.

llama.cpp reads type, factor, original context and attention factor of every architecture. It reads YaRN's betas for
few others only: here they are 32 and 1, regardless of the file. The table below follows llama.cpp's source
(ggml_rope_yarn_corr_dims, rope_yarn in ggml/src/ggml-cpu/ops.cpp; llama_context in src/llama-context.cpp), so that a
file can be checked without the configuration that it was written from.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    import numpy.typing as npt
    from gguf import GGUFReader, GGUFWriter

_BETA_FAST, _BETA_SLOW = 32.0, 1.0
_WINDOWS_BASE = 10_000.0
"Of Gemma 3's windowed layers, which no file says."
_FACTORS = {"llama": ("llama3",), "phi3": ("longrope",)}
"Architectures whose loader supports divisor tensors, and the scalings that need them."


def rope_of(config: Any) -> dict[str, Any]:
    """Returns the rotary settings of a transformers configuration; those of whole attention where windows differ."""
    found = dict(config.rope_parameters or {})
    return dict(found.get("full_attention", found))


def of_windows(config: Any) -> dict[str, Any]:
    """Returns the rotary settings of windowed layers, where they have their own; else none."""
    return dict((config.rope_parameters or {}).get("sliding_attention") or {})


def head_size(config: Any) -> int:
    """Returns the width of each head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def rotated(config: Any) -> int:
    """Returns the number of dimensions per head that the rotary embedding rotates."""
    return int(head_size(config) * rope_of(config).get("partial_rotary_factor", 1.0))


def obstacle(config: Any, architecture: str) -> str:
    """Returns why llama.cpp cannot apply this model's rotary embedding; "" where it can."""
    rope = rope_of(config)
    kind = rope.get("rope_type", "default")
    if kind in ("llama3", "longrope"):
        return "" if kind in _FACTORS.get(architecture, ()) else f"{architecture} has no divisors there for {kind}"
    if kind not in ("default", "linear", "yarn"):
        return f"its rotary scaling {kind} has no counterpart there"
    betas = float(rope.get("beta_fast") or _BETA_FAST), float(rope.get("beta_slow") or _BETA_SLOW)
    if kind == "yarn" and betas != (_BETA_FAST, _BETA_SLOW):
        return f"YaRN's betas are 32 and 1 there, not {betas[0]:g} and {betas[1]:g}"
    if kind == "yarn" and not rope.get("truncate", True):
        return "YaRN's range is rounded there, and not in this model (truncate)"
    windows = of_windows(config)
    if windows and (windows.get("rope_type", "default"), windows.get("rope_theta")) != ("default", _WINDOWS_BASE):
        return f"its windowed layers rotate by base {_WINDOWS_BASE:,.0f} there, not {windows.get('rope_theta'):,.0f}"
    return ""


def describe(writer: GGUFWriter, config: Any) -> None:
    """Adds the rotary settings to a file's metadata."""
    from gguf import RopeScalingType
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = rope_of(config)
    kind = rope.get("rope_type", "default")
    writer.add_rope_dimension_count(rotated(config))
    writer.add_rope_freq_base(rope["rope_theta"])
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(RopeScalingType(kind))
        writer.add_rope_scaling_factor(_factor(config))
    if kind not in ("yarn", "longrope"):
        return
    _, magnitude = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    trained = _trained_context(config)
    if trained:
        writer.add_rope_scaling_orig_ctx_len(trained)
    if kind == "yarn":
        magnitude /= _magnitude(_factor(config))  # llama.cpp multiplies it back
        writer.add_rope_scaling_yarn_beta_fast(_BETA_FAST)
        writer.add_rope_scaling_yarn_beta_slow(_BETA_SLOW)
    writer.add_rope_scaling_attn_factors(magnitude)


def divisors(config: Any) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Yields tensors that divide the rotary frequencies, where GGUF has no formula. Shape (rotated / 2,), fp32."""
    rope = rope_of(config)
    kind = rope.get("rope_type", "default")
    if kind == "longrope":
        for length in ("long", "short"):
            yield f"rope_factors_{length}.weight", np.array(rope[f"{length}_factor"], dtype=np.float32)
    elif kind == "llama3":
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
        yield "rope_freqs.weight", (_plain(rotated(config), rope["rope_theta"]) / scaled.double().numpy()).astype("f4")


def _factor(config: Any) -> float:
    factor = rope_of(config).get("factor")
    return float(factor or config.max_position_embeddings / _trained_context(config))


def _trained_context(config: Any) -> int:
    found = rope_of(config).get("original_max_position_embeddings")
    return int(found or getattr(config, "original_max_position_embeddings", None) or 0)


def _plain(size: int, base: float) -> npt.NDArray[np.float64]:
    exponents: npt.NDArray[np.float64] = np.arange(0, size, 2, dtype=np.float64) / size
    return base**-exponents


def _magnitude(factor: float) -> float:
    return 1 + 0.1 * math.log(factor)


# --- table as llama.cpp reads it -----------------------------------------------------------------------------


@dataclass(frozen=True)
class RotaryTable:
    """Rotation of each dimension pair per position.

    Attributes:
        frequencies: Radians per position. Shape (rotated / 2,).
        magnitude: Factor on cosine and sine.
    """

    frequencies: npt.NDArray[np.float64]
    magnitude: float


def read_table(file: Path, length: int) -> RotaryTable:
    """Computes llama.cpp's rotary table for a file and a context of `length` tokens."""
    from gguf import GGUFReader

    reader = GGUFReader(file)
    size = int(_value(reader, "rope.dimension_count", 0))
    factor = float(_value(reader, "rope.scaling.factor", 1.0)) or 1.0
    kind = _value(reader, "rope.scaling.type", "linear")
    trained = int(_value(reader, "rope.scaling.original_context_length", _value(reader, "context_length", 0)))
    magnitude = float(_value(reader, "rope.scaling.attn_factor", 1.0))
    base = float(_value(reader, "rope.freq_base", 10000.0))
    frequencies = _plain(size, base)
    tensors = {tensor.name: tensor.data for tensor in reader.tensors if tensor.name.startswith("rope_")}
    name = f"rope_factors_{'long' if length > trained else 'short'}.weight"
    divisor = tensors.get("rope_freqs.weight", tensors.get(name))
    if divisor is not None:
        frequencies /= np.asarray(divisor, dtype=np.float64)
    if kind == "yarn":
        low, high = (
            size * math.log(trained / (beta * 2 * math.pi)) / (2 * math.log(base)) for beta in (_BETA_FAST, _BETA_SLOW)
        )
        low, high = max(0.0, math.floor(low)), min(size - 1.0, math.ceil(high))
        ramp = np.clip((np.arange(size // 2) - low) / max(0.001, high - low), 0, 1)
        return RotaryTable(frequencies * (ramp / factor + 1 - ramp), magnitude * _magnitude(factor))
    return RotaryTable(frequencies if kind == "none" else frequencies / factor, magnitude)


def _value(reader: GGUFReader, key: str, default: Any) -> Any:
    architecture = reader.fields["general.architecture"].contents()
    field = reader.fields.get(f"{architecture}.{key}")
    return default if field is None else field.contents()
