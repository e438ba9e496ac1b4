"""Reloads an export and compares its logits with those of the run's own model.

The export is read by transformers and PEFT, as its users will; the run's model by the engine. Both run on the CPU in
fp32, one after the other.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from engine.errors.export import EXPORT_DIFFERS
from engine.export.gguf_model import is_read_by_transformers, read_model
from engine.export.gguf_rope import read_table
from engine.export.source import trained_encoder
from engine.hardware.limits import read_memory
from engine.models.base_changes import NO_CHANGES
from engine.models.hub import find_folder
from engine.models.placement import choose_placement
from engine.quantities import format_bytes

if TYPE_CHECKING:
    from engine.export.source import Merged, Source

MOST_BYTES = 4 << 30
"""Largest export that is compared by default."""
_COPIES = 2.5
"""Copies of an fp32 model in memory during the comparison: reading GGUF takes it twice."""
TOLERANCE = {"f32": 1e-4, "fp16": 5e-3, "bf16": 4e-2, "q8_0": 1e-1, "q5_k_m": 0.3, "q4_k_m": 0.6}
"""Largest root-mean-square difference of logits over their standard deviation, by the format of the weights.

bf16 keeps 8 bits of each weight, and q8_0 about as many of the largest in a block; rounding adds up over layers.
Weights differ by 3.6% in 5 bits and by 7.1% in 4, relative and on average.
"""
_ROTARY_TOLERANCE = 1e-4
"""Relative; rotary values written in fp32 differ by about 1e-7."""
_TEXT = '''def merge(left: list[int], right: list[int]) -> list[int]:
    """Two sorted lists as one."""
    merged = []
    while left and right:
        merged.append((left if left[0] <= right[0] else right).pop(0))
    return merged + left + right
'''


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Difference between two models on a sample of code."""

    relative: float
    "Root mean square of the logits' differences over their standard deviation."
    same_choice: float
    "Share of positions where both have the same most likely token."
    tokens: int


def reason_against(parameters: int, file_bytes: int) -> str:
    """Returns why the default skips the comparison; "" where it does not.

    Args:
        parameters: Number of the model's parameters.
        file_bytes: Size of the export.
    """
    if file_bytes > MOST_BYTES:
        return f"it is larger than {format_bytes(MOST_BYTES)}; --check compares it all the same"
    needed, free = 4 * parameters * _COPIES, read_memory().available
    if needed > free:
        return f"that takes {format_bytes(needed)} of RAM, and {format_bytes(free)} are free"
    return ""


@torch.no_grad()
def compare_adapter(source: Source, folder: Path) -> Difference:
    """Compares a run's model with an exported adapter on its base, loaded by transformers and PEFT alone.

    For a base that was changed before training (BaseChanges), the engine builds the base of both.

    Raises:
        EliteError: EXPORT_DIFFERS; MODEL_* where the base cannot be loaded.
    """
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForCausalLM

    from engine.models.loading import text_config

    ids = _sample(source)
    expected = _logits(_trained(source), ids)
    if source.changes == NO_CHANGES:
        where, arguments = find_folder(source.spec), {}
        if renames := source.base_folder.renames:
            inner = text_config(AutoConfig.from_pretrained(where, trust_remote_code=False), source.base_folder)
            arguments = {"config": inner, "key_mapping": dict(renames)}
        plain = AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32, trust_remote_code=False, **arguments)
        base = _whole(plain)
    else:
        base = _base(source)
    found = _logits(PeftModel.from_pretrained(base, folder), ids)
    return _judged(found, expected, folder, "f32")


@torch.no_grad()
def compare(source: Source, model: Merged, folder: Path, dtype: str, gguf: str | None = None) -> Difference:
    """Compares a run's model, base and adapter in fp32, with an export of it.

    Raises:
        EliteError: EXPORT_DIFFERS when the difference exceeds the format's tolerance.
    """
    from transformers import AutoModelForCausalLM

    ids = _sample(source)
    trained = _trained(source)
    expected = _logits(trained, ids)
    rotary = _rotary(trained) if gguf else None
    del trained
    # transformers ignores some of a GGUF file's metadata: head sizes and rotary scalings.
    arguments: dict[str, Any] = {"gguf_file": gguf} if gguf else {}
    if gguf and model.config.model_type != "mistral":  # transformers reads it as Llama
        arguments["config"] = model.config
    if gguf and not is_read_by_transformers(model.config):
        exported = read_model(folder / gguf, model.config)
    else:
        exported = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=False, **arguments
        )
    if gguf:
        _turn_as_written(exported, rotary, folder / gguf, ids.shape[1])
    return _judged(_logits(exported, ids), expected, folder, dtype)


def _judged(found: torch.Tensor, expected: torch.Tensor, folder: Path, dtype: str) -> Difference:
    difference = Difference(
        relative=((found - expected).square().mean().sqrt() / expected.std()).item(),
        same_choice=(found.argmax(-1) == expected.argmax(-1)).float().mean().item(),
        tokens=expected.shape[1],
    )
    if not difference.relative <= TOLERANCE[dtype]:
        raise EXPORT_DIFFERS(
            path=folder, problem=f"they differ by {difference.relative:.2g}, and {dtype} explains {TOLERANCE[dtype]:g}"
        )
    return difference


def _rotary(model: Any) -> Any:
    """Returns the module that holds the rotary frequencies."""
    return next(module for module in model.modules() if hasattr(module, _of(module) + "inv_freq"))


def _of(rotary: Any) -> str:
    """Returns how names of a rotary module's values begin, where windowed layers have others (Gemma 3)."""
    return "full_attention_" if hasattr(rotary, "full_attention_inv_freq") else ""


def _turn_as_written(exported: Any, trained: Any, file: Path, length: int) -> None:
    """Gives an exported model the rotary table that its file describes, in place of the model configuration's.

    Raises:
        EliteError: EXPORT_DIFFERS when it is not the table that the run trained with.
    """
    table = read_table(file, length)
    frequencies = torch.from_numpy(table.frequencies)
    of = _of(trained)
    before = getattr(trained, f"{of}inv_freq").double()
    apart = (frequencies / before - 1).abs().max().item() if frequencies.shape == before.shape else float("inf")
    apart = max(apart, abs(table.magnitude / float(getattr(trained, f"{of}attention_scaling")) - 1))
    if not apart <= _ROTARY_TOLERANCE:
        raise EXPORT_DIFFERS(path=file, problem=f"their rotary tables differ by {apart:.2g}, relative")
    rotary = _rotary(exported)
    setattr(rotary, f"{of}inv_freq", frequencies.float())
    setattr(rotary, f"{of}attention_scaling", table.magnitude)
    if not of:
        rotary.rope_type = "default"  # keeps transformers from recomputing them


def _sample(source: Source) -> torch.Tensor:
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    # A trained head of its own is used even where the base ties it.
    warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings", category=UserWarning)
    return torch.tensor([trained_encoder(source.result).encode_prompt(_TEXT)[:128]])


def _trained(source: Source) -> Any:
    if not source.is_adapter:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(source.result, dtype=torch.float32, trust_remote_code=False)
    if source.is_base:
        return _base(source)
    from peft import PeftModel

    return PeftModel.from_pretrained(_base(source), source.result)


def _base(source: Source) -> Any:
    from engine.models.loading import load_model

    return _whole(load_model(source.spec, choose_placement("cpu", "fp32"), source.changes))


def _whole(model: Any) -> Any:
    """Dequantises a 4-bit model: its products run in the CPU's fastest format, those of an export in fp32."""
    return model.dequantize() if getattr(model, "is_quantized", False) else model


def _logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model.eval()(input_ids=ids, use_cache=False).logits
    return logits.float()
