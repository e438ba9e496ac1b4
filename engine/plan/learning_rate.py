"""The peak learning rate of a run: as configured, or by the model's width.

The rule is fitted to sweeps over 14 Llama and Qwen models (Schulman et al., LoRA Without Regret, Thinking Machines,
2025), with the constants of tinker-cookbook (tinker_cookbook/hyperparam_utils.py, `get_lr`):

    5e-5 × (2,000 / width) ** power        × 10 for an adapter

docs/learning-rate.md has its sources, what is added to it here and why, and what it was measured against.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.config import LoraSection, TrainingSection
    from engine.models.spec import ModelSpec

FULL_RATE, ADAPTER_FACTOR, REFERENCE_WIDTH = 5e-5, 10.0, 2000
QWEN_POWER, LLAMA_POWER = 0.0775, 0.781
REFERENCE_ALPHA = 32.0
"Alpha of the sweeps, with the update multiplied by alpha / rank."
PREFERENCE_SHARE = 1 / 40
"""Rate of DPO over that of the cross-entropy: 5e-6 over 2e-4 for adapters in the recipes of zephyr-7b
(alignment-handbook), 1e-5 over 4.7e-4 in tinker-cookbook's."""


def learning_rate_of(spec: ModelSpec, training: TrainingSection, lora: LoraSection) -> float:
    """Returns `training.learning_rate`, or the automatic rate where it is unset.

    It is that of an update before `training.lr_scaling`, and of A where A and B differ.
    """
    rate = training.learning_rate
    return automatic_rate(spec, training, lora) if rate is None else rate


def automatic_rate(spec: ModelSpec, training: TrainingSection, lora: LoraSection) -> float:
    """Returns the rate by the model's width, to two digits: the fit is no more exact."""
    rate = FULL_RATE * (REFERENCE_WIDTH / spec.hidden_size) ** _power(spec)
    if training.method == "lora":
        rate *= ADAPTER_FACTOR / (_strength(lora) * math.sqrt(lora.plus_ratio))
    if training.objective == "dpo":
        rate *= PREFERENCE_SHARE
    return float(f"{rate:.2g}")


def _power(spec: ModelSpec) -> float:
    """Returns how the rate falls with the width: Qwen's for models of that name, else Llama's.

    By name, as in the source, and not by architecture: the embedded model has Qwen's, but not its training.
    """
    names = f"{spec.name} {spec.hub_id or ''}".lower()
    return QWEN_POWER if "qwen" in names else LLAMA_POWER


def _strength(lora: LoraSection) -> float:
    """Returns how much further than the sweeps' an adapter moves the weights at one rate, at least 1.

    Adam moves each number of B by the rate, whatever the gradient, and the update is B·A times a scale. A scale above
    that of the sweeps is divided out. One below is left: A, which begins at random, would move too fast.
    """
    alpha = lora.alpha * (math.sqrt(lora.rank) if lora.rslora else 1.0)
    return max(1.0, alpha / REFERENCE_ALPHA)
