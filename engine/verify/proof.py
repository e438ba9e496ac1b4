"""What a proof is given, what it returns, and how it says that it cannot run here.

A proof is a function `prove(bench) -> evidence`. It takes the implementation through the function that training
takes it through, so that it fails when that function does nothing.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where a proof runs."""

    device: torch.device
    folder: Path
    "Empty, and removed afterwards."

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of one proof."""

    id: str
    status: Literal["passed", "failed", "unavailable"]
    evidence: str
    "Numbers that were seen; empty where it could not run."
    reason: str
    "Why it failed, or cannot run and what would change that; empty where it passed."
    seconds: float


class ProofFailedError(AssertionError):
    """What was seen is not what the technique promises. The message says both."""


class UnavailableError(Exception):
    """The proof cannot run on this machine. The message says why, and the remedy."""


def demand(holds: bool, evidence: str) -> None:
    """Fails the proof unless what was seen holds.

    Raises:
        ProofFailedError: it does not.
    """
    if not holds:
        raise ProofFailedError(evidence)


def need_gpu(bench: Bench, why: str) -> None:
    """Ends the proof where no GPU is.

    Raises:
        UnavailableError: no CUDA device is there.
    """
    if not bench.on_gpu:
        raise UnavailableError(f"{why}; run `engine verify` on a machine with an NVIDIA GPU")


def need_library(module: str, extra: str) -> None:
    """Ends the proof where a library is missing.

    Raises:
        UnavailableError: it is not installed.
    """
    if importlib.util.find_spec(module) is None:
        raise UnavailableError(f"the package {module} is not installed; run `pip install 'elite-tui[{extra}]'`")
