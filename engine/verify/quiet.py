"""Silences libraries' messages on import and while loading weights. Import it before any of them."""

from __future__ import annotations

import logging
import os


def quieten() -> None:
    """Disables progress bars and notices of missing features; verdicts report those that matter."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # for the processes that proofs start
    for name in ("bitsandbytes", "DeepSpeed", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
