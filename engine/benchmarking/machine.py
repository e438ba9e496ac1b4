"""Describes the machine of a measurement, for the record beside every figure."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

import torch

_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "liger-kernel", "triton", "deepspeed")


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Returns GPU, driver-visible memory and library versions."""
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    described: dict[str, Any] = {"python": platform.python_version(), "versions": versions}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        described |= {"card": properties.name, "card_bytes": properties.total_memory, "cuda": torch.version.cuda}
    else:
        described |= {"card": None, "cpu": platform.processor() or platform.machine()}
    return described
