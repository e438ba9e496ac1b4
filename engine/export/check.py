"""Loads an export again and compares its logits with those of the run's own model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from engine import errors

if TYPE_CHECKING:
    from engine.export.source import Merged, Source

TOLERANCE = {"f32": 1e-4, "fp16": 5e-3, "bf16": 4e-2, "q8_0": 1e-1}
"""Largest root-mean-square difference of logits over their standard deviation, by the format of the weights.

bf16 keeps 8 bits of each weight and q8_0 about as many of the largest in a block; what they lose adds up over layers.
"""
_TEXT = '''def merge(left: list[int], right: list[int]) -> list[int]:
    """Two sorted lists as one."""
    merged = []
    while left and right:
        merged.append((left if left[0] <= right[0] else right).pop(0))
    return merged + left + right
'''


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far two models are apart on a sample of code."""

    relative: float
    "Root mean square of the logits' differences over their standard deviation."
    same_choice: float
    "Share of positions where both find the same token most likely."
    tokens: int


@torch.no_grad()
def compare(source: Source, model: Merged, folder: Path, dtype: str, gguf: str | None = None) -> Difference:
    """The difference between a run's model, base and adapter in fp32, and an export of it.

    Both are on the CPU in fp32, one after the other: the whole model has to fit in RAM at 4 bytes a parameter.

    Raises:
        EliteError: EXPORT_DIFFERS when it is more than the format explains.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    ids = _sample(source)
    expected = _logits(_trained(source), ids)
    # transformers reads only a part of a GGUF file's metadata: head sizes and rotary scalings are not in it.
    arguments: dict[str, Any] = {"gguf_file": gguf} if gguf else {}
    if gguf and model.config.model_type != "mistral":  # which is a Llama there
        arguments["config"] = model.config
    exported = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False, **arguments)
    found = _logits(exported, ids)
    difference = Difference(
        relative=((found - expected).square().mean().sqrt() / expected.std()).item(),
        same_choice=(found.argmax(-1) == expected.argmax(-1)).float().mean().item(),
        tokens=ids.shape[1],
    )
    if not difference.relative <= TOLERANCE[dtype]:
        raise errors.EXPORT_DIFFERS(
            path=folder, problem=f"they differ by {difference.relative:.2g}, and {dtype} explains {TOLERANCE[dtype]:g}"
        )
    return difference


def _sample(source: Source) -> torch.Tensor:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(source.result)
    return torch.tensor([tokenizer(_TEXT)["input_ids"][:128]])


def _trained(source: Source) -> Any:
    from engine.models.loading import load_model
    from engine.models.placement import choose_placement

    if not source.is_adapter:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(source.result, dtype=torch.float32, trust_remote_code=False)
    from peft import PeftModel

    base = load_model(source.spec, choose_placement("cpu", "fp32"), source.changes)
    return PeftModel.from_pretrained(base, source.result)


def _logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model.eval()(input_ids=ids, use_cache=False).logits
    return logits.float()
