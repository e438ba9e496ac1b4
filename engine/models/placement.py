"""Chooses the base model's device and precision."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Literal

import torch

from engine.errors.model import DEVICE_UNAVAILABLE, PRECISION_UNAVAILABLE

Precision = Literal["bf16", "fp16", "fp32", "nf4"]
"""How the base weights are stored; the adapter's master weights are always fp32."""

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Device and dtypes of the base model."""

    device: torch.device
    precision: Precision
    compute: Literal["bf16", "fp16", "fp32"]
    "Precision of the matrix products; differs from `precision` only for nf4."

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the unquantised weights and the activations."""
        return _DTYPES[self.compute]

    @property
    def mixed_precision(self) -> Literal["no", "bf16", "fp16"]:
        """The compute dtype as accelerate's `mixed_precision`."""
        return "no" if self.compute == "fp32" else self.compute


def choose_placement(device: str, precision: str) -> Placement:
    """Chooses the placement for `model.device` and `model.precision`, either of which may be "auto".

    Raises:
        EliteError: DEVICE_UNAVAILABLE, PRECISION_UNAVAILABLE.
    """
    chosen = _choose_device(device)
    fastest = _fastest_format(chosen)
    if precision == "auto":
        precision = fastest
    if precision == "nf4":
        _require_bitsandbytes()
        return Placement(device=chosen, precision="nf4", compute=fastest)
    if precision == "fp16" and chosen.type == "cpu":
        raise PRECISION_UNAVAILABLE(
            precision="fp16", problem="the CPU has no fp16 training kernels", remedy="use fp32 or bf16"
        )
    if precision == "bf16" and chosen.type == "cuda" and fastest != "bf16":
        raise PRECISION_UNAVAILABLE(
            precision="bf16",
            problem=f"{torch.cuda.get_device_name(chosen)} has no bf16 units",
            remedy="use fp16 or nf4",
        )
    kind: Literal["bf16", "fp16", "fp32"] = "bf16" if precision == "bf16" else "fp16" if precision == "fp16" else "fp32"
    return Placement(device=chosen, precision=kind, compute=kind)


def _choose_device(name: str) -> torch.device:
    present = torch.cuda.is_available()
    if name == "cuda" and not present:
        raise DEVICE_UNAVAILABLE(device="cuda", problem="torch sees no CUDA device")
    return torch.device("cuda", 0) if present and name != "cpu" else torch.device("cpu")


def _fastest_format(device: torch.device) -> Literal["bf16", "fp16", "fp32"]:
    if device.type == "cpu":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def _require_bitsandbytes() -> None:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise PRECISION_UNAVAILABLE(
            precision="nf4",
            problem="the package bitsandbytes is not installed",
            remedy="run `pip install 'elite-tui[quant]'`, or use another precision",
        )


def device_name(device: torch.device) -> str:
    """Returns the GPU's name, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
