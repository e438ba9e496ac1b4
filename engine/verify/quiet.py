"""Silences what libraries announce while they are imported or load weights: imported before any of them."""

from __future__ import annotations

import logging
import os


def quieten() -> None:
    """No progress bars and no notices of what is missing on this machine: verdicts say what matters."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # for the processes that proofs start
    for name in ("bitsandbytes", "DeepSpeed", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
