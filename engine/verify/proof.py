"""Contract of a proof: its inputs, its verdict, and its errors.

A proof is a function `prove(bench) -> evidence`. It calls the implementation through the same function as training
does, so that it fails when that function does nothing.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Device and folder of a proof."""

    device: torch.device
    folder: Path
    "Empty folder, removed afterwards."

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Result of one proof."""

    id: str
    status: Literal["passed", "failed", "unavailable"]
    evidence: str
    "Measured numbers; empty where it could not run."
    reason: str
    "Why it failed, or cannot run and the remedy; empty where it passed."
    seconds: float


class ProofFailedError(AssertionError):
    """The measurement contradicts the technique's claim. The message gives both."""


class UnavailableError(Exception):
    """The proof cannot run on this machine. The message gives the reason and the remedy."""


def demand(holds: bool, evidence: str) -> None:
    """Fails the proof unless `holds`.

    Raises:
        ProofFailedError: `holds` is false.
    """
    if not holds:
        raise ProofFailedError(evidence)


def need_gpu(bench: Bench, why: str) -> None:
    """Makes the proof unavailable without a GPU.

    Raises:
        UnavailableError: there is no CUDA device.
    """
    if not bench.on_gpu:
        raise UnavailableError(f"{why}; run `engine verify` on a machine with an NVIDIA GPU")


def need_library(module: str, extra: str) -> None:
    """Makes the proof unavailable without a library.

    Raises:
        UnavailableError: the library is not installed.
    """
    if importlib.util.find_spec(module) is None:
        raise UnavailableError(f"the package {module} is not installed; run `pip install 'elite-tui[{extra}]'`")


def quieten() -> None:
    """Disables libraries' progress bars and notices of missing features; verdicts report those that matter.

    Called before any of these libraries is imported.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # for the processes that proofs start
    for name in ("bitsandbytes", "DeepSpeed", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
